//! Handles: what C holds instead of an object.
//!
//! A handle is a ticket, not an address. It names a place in a table and how often that place was
//! taken, so that a handle that was freed, that is of another type, or that never was one, is
//! refused without being followed. Objects are counted references: whoever uses one keeps it alive,
//! and freeing in any order, in a callback or on another thread, is safe.

use std::any::Any;
use std::sync::{Arc, PoisonError, RwLock};

use crate::status::{Failure, teeny_status};

/// A type of object that handles stand for.
pub(crate) trait Kind: Any + Send + Sync {
    /// What C calls it.
    type Handle;
    /// As messages name it.
    const NAME: &'static str;
    /// Distinguishes the types in a handle: from 1 to 7, each number once.
    const TAG: usize;
}

type Object = Arc<dyn Any + Send + Sync>;

// A handle from its lowest bit on: 1, which no address of an object of C has; the type; the place;
// the turn.
const TAG_BITS: u32 = 3;
const PLACE_BITS: u32 = if usize::BITS >= 64 { 28 } else { 16 };
const PLACE_SHIFT: u32 = 1 + TAG_BITS;
const TURN_SHIFT: u32 = PLACE_SHIFT + PLACE_BITS;
const LAST_TURN: usize = usize::MAX >> TURN_SHIFT;

struct Place {
    /// Which object it is that lies here; counts from 1.
    turn: usize,
    object: Option<Object>,
}

struct Table {
    places: Vec<Place>,
    free: Vec<usize>,
}

static TABLE: RwLock<Table> = RwLock::new(Table { places: Vec::new(), free: Vec::new() });

/// Makes a handle of an object.
pub(crate) fn new<K: Kind>(object: K) -> Result<*mut K::Handle, Failure> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let place = match table.free.pop() {
        Some(place) => place,
        None => {
            let place = table.places.len();
            if place >> PLACE_BITS > 0 {
                let message = format!("out of handles: {place} objects are alive");
                return Err(Failure::new(teeny_status::TEENY_OUT_OF_MEMORY, message));
            }
            table.places.push(Place { turn: 1, object: None });
            place
        }
    };
    let entry = &mut table.places[place];
    entry.object = Some(Arc::new(object));
    let handle = entry.turn << TURN_SHIFT | place << PLACE_SHIFT | K::TAG << 1 | 1;
    Ok(std::ptr::without_provenance_mut(handle))
}

/// The object of a handle, kept alive as long as the result lives.
pub(crate) fn get<K: Kind>(handle: *const K::Handle, name: &str) -> Result<Arc<K>, Failure> {
    if handle.is_null() {
        return Err(Failure::null(name));
    }
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let object = find::<K>(&table, handle.addr())
        .and_then(|place| table.places[place].object.clone())
        .and_then(|object| object.downcast().ok());
    object.ok_or_else(|| invalid::<K>(handle, name))
}

/// Frees a handle; the object goes with the last that uses it. NULL is fine.
pub(crate) fn free<K: Kind>(handle: *mut K::Handle, name: &str) -> Result<(), Failure> {
    if handle.is_null() {
        return Ok(());
    }
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(place) = find::<K>(&table, handle.addr()) else {
        return Err(invalid::<K>(handle, name));
    };
    let entry = &mut table.places[place];
    let object = entry.object.take();
    // A place whose turns are used up is not taken again.
    if entry.turn < LAST_TURN {
        entry.turn += 1;
        table.free.push(place);
    }
    // Dropping may call back into the library, so the table must be free.
    drop(table);
    drop(object);
    Ok(())
}

/// Where the object of a handle lies, if it lies anywhere.
fn find<K: Kind>(table: &Table, handle: usize) -> Option<usize> {
    let place = handle >> PLACE_SHIFT & ((1 << PLACE_BITS) - 1);
    let entry = table.places.get(place)?;
    let same = handle & 1 == 1
        && handle >> 1 & ((1 << TAG_BITS) - 1) == K::TAG
        && handle >> TURN_SHIFT == entry.turn
        && entry.object.as_ref().is_some_and(|object| object.is::<K>());
    same.then_some(place)
}

fn invalid<K: Kind>(handle: *const K::Handle, name: &str) -> Failure {
    let message = format!(
        "{name}: found {handle:p}, expected a {} that teeny has made and that is not freed",
        K::NAME
    );
    Failure::new(teeny_status::TEENY_INVALID_HANDLE, message)
}

/// Number of objects that are not freed, of all types together: 0 at the end of a program that
/// forgets none. (Tools that look for lost memory do not see a forgotten object, because the library
/// still knows it.)
#[unsafe(no_mangle)]
pub extern "C" fn teeny_object_count() -> usize {
    crate::status::call_or(0, || {
        let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
        Ok(table.places.iter().filter(|place| place.object.is_some()).count())
    })
}
