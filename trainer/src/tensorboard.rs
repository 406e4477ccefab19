//! Event files that TensorBoard reads: scalars, texts, and marks that a run went back.
//!
//! A file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h), each of which holds
//! an `Event` (tensorflow/core/util/event.proto) in the encoding of protocol buffers:
//!
//! ```text
//! length: u64 | masked CRC32C of length: u32 | data | masked CRC32C of data: u32
//! ```
//!
//! All numbers are little-endian. Only what we write is implemented, which is less than a
//! dependency would be.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// A file of events, open for writing.
pub struct EventFile {
    file: File,
    path: PathBuf,
    /// Bytes of whole records.
    len: u64,
}

impl EventFile {
    /// Makes `events.out.tfevents.<seconds>.<host>.<pid>` in `folder`; a number follows if there is
    /// one of that name.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn create(folder: &Path) -> Result<EventFile> {
        let name = format!(
            "events.out.tfevents.{:010}.{}.{}",
            now().as_secs(),
            host(),
            std::process::id()
        );
        let mut path = folder.join(&name);
        let mut n = 0;
        let file = loop {
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    n += 1;
                    path = folder.join(format!("{name}.{n}"));
                }
                Err(source) => {
                    let action = "cannot make";
                    return Err(teeny_runtime::Error::Io { action, path, source }.into());
                }
            }
        };
        let mut events = EventFile { file, path, len: 0 };
        events.write(&file_version(now().as_secs_f64()))?;
        Ok(events)
    }

    /// Values of one step, as (tag, value).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.write(&scalars(now().as_secs_f64(), step, values))
    }

    /// A text of one step, which is shown as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        self.write(&text_event(now().as_secs_f64(), step, tag, text))
    }

    /// From here on, earlier values of `step` and later steps are void.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn restart(&mut self, step: u64) -> Result<()> {
        self.write(&restart(now().as_secs_f64(), step))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        // One call for the whole record: a reader that follows the file seldom sees half of one,
        // and TensorBoard waits for the rest if it does.
        let record = record(event);
        match self.file.write_all(&record) {
            Ok(()) => {
                self.len += record.len() as u64;
                Ok(())
            }
            Err(source) => {
                // Nothing can be read past a part of a record. If the part cannot be taken back
                // either, the error says all the same that the file is not to be relied on.
                let _ = self.file.set_len(self.len);
                let (action, path) = ("cannot write", self.path.clone());
                Err(Error::Runtime(teeny_runtime::Error::Io { action, path, source }))
            }
        }
    }
}

/// Time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The name of this machine, fit for a file name.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fit = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = name.trim().chars().filter(fit).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// `Event { wall_time, file_version }`, the first of every file.
fn file_version(wall_time: f64) -> Vec<u8> {
    let mut event = header(wall_time, 0);
    bytes_field(&mut event, 3, b"brain.Event:2");
    event
}

/// `Event { wall_time, step, summary { value { tag, simple_value } .. } }`.
fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut message = Vec::new();
        bytes_field(&mut message, 1, tag.as_bytes());
        key(&mut message, 2, Wire::Bits32);
        message.extend((*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &message);
    }
    let mut event = header(wall_time, step);
    bytes_field(&mut event, 5, &summary);
    event
}

/// `Event { wall_time, step, summary { value { tag, tensor, metadata } } }` for the plugin of texts,
/// as `tf.summary.text` makes it. The plugin takes a text for Markdown, in which lines behind four
/// spaces are code: shown as they are, with all of their line ends.
fn text_event(wall_time: f64, step: u64, tag: &str, text: &str) -> Vec<u8> {
    let text: Vec<_> = text.split('\n').map(|line| format!("    {line}")).collect();
    let mut tensor = vec![1 << 3, 7]; // dtype: DT_STRING
    bytes_field(&mut tensor, 2, &[]); // tensor_shape: no dimensions, a scalar
    bytes_field(&mut tensor, 8, text.join("\n").as_bytes()); // string_val
    let mut plugin = Vec::new();
    bytes_field(&mut plugin, 1, b"text"); // plugin_name
    let mut metadata = Vec::new();
    bytes_field(&mut metadata, 1, &plugin); // plugin_data
    metadata.extend([4 << 3, 2]); // data_class: DATA_CLASS_TENSOR
    let mut value = Vec::new();
    bytes_field(&mut value, 1, tag.as_bytes());
    bytes_field(&mut value, 8, &tensor);
    bytes_field(&mut value, 9, &metadata);
    let mut summary = Vec::new();
    bytes_field(&mut summary, 1, &value);
    let mut event = header(wall_time, step);
    bytes_field(&mut event, 5, &summary);
    event
}

/// `Event { wall_time, step, session_log { status: START } }`: TensorBoard then drops what it has
/// of this step and later ones.
fn restart(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = header(wall_time, step);
    bytes_field(&mut event, 7, &[1 << 3, 1]);
    event
}

/// `Event { wall_time, step }`; a step of 0 is the default, which is not written.
fn header(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::with_capacity(256);
    key(&mut event, 1, Wire::Bits64);
    event.extend(wall_time.to_le_bytes());
    if step > 0 {
        key(&mut event, 2, Wire::Varint);
        varint(&mut event, step);
    }
    event
}

/// How a field is encoded (protobuf.dev/programming-guides/encoding).
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Bits64 = 1,
    Length = 2,
    Bits32 = 5,
}

fn key(out: &mut Vec<u8>, field: u8, wire: Wire) {
    out.push(field << 3 | wire as u8);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    key(out, field, Wire::Length);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `data` as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc32c(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc32c(data).to_le_bytes());
    out
}

/// The CRC, changed such that the CRC of data which holds CRCs is as good as any
/// (tensorflow/core/lib/hash/crc32c.h).
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC32C (Castagnoli), RFC 3720 section 12.1.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !data.iter().fold(!0, step)
}

/// The CRC of each byte; the polynomial 0x1edc6f41 with its bits reversed.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3720, section B.4, and the check value of the CRC RevEng catalogue.
    #[test]
    fn crc_of_the_examples() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(&descending), 0x113f_db5c);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// What `RecordWriter` of tensorboard 2.21.0 (protobuf 7.36.2) writes for the same events.
    #[test]
    fn bytes_of_tensorboard() {
        let expected = "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32\
            eced8f9d3d000000000000006049f1ec0900001040fc54d94110ac022a2f0a100a096c6f73732f73746570\
            15000020400a090a026c72156f12833a0a100a09677261645f6e6f726d150000c07f42e6bd5c1000000000\
            00000095fbfe180900006040fc54d94110c9013a0208012c69f14b46000000000000007235b9a509000030\
            40fc54d94110ac022a380a360a0673616d706c65422008071200421a20202020524f4d454f3a0a20202020\
            0a20202020c3a9203c623e4a0a0a060a047465787420028a03f804";
        let values = [("loss/step", 2.5), ("lr", 0.001), ("grad_norm", f64::NAN)];
        let file = [
            record(&file_version(1.7e9)),
            record(&scalars(1_700_000_000.25, 300, &values)),
            record(&restart(1_700_000_001.5, 201)),
            record(&text_event(1_700_000_000.75, 300, "sample", "ROMEO:\n\né <b>")),
        ];
        let hex: String = file.concat().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }
}
