//! Checks of pieces, and what follows from their kinds.

use std::collections::HashSet;

use super::parts::PieceKind;
use crate::error::Result;
use crate::tokenizer::normalize::META;
use crate::tokenizer::pieces::{Pieces, PiecesBuilder, refuse, shown};

/// Longest user-defined piece in bytes. Each place of a text is compared with as many.
const MOST_USER_DEFINED: usize = 1 << 10;

/// Every piece must be text of some length, and every score a number.
pub(super) fn check_pieces(pieces: &Pieces, scores: &[f32], kinds: &[PieceKind]) -> Result<()> {
    for ((id, piece), (score, kind)) in pieces.iter().zip(scores.iter().zip(kinds)) {
        if piece.is_empty() && *kind != PieceKind::Unused {
            return Err(refuse("tokenizer.pieces", format!("nothing at {id}"), "a piece of text"));
        }
        if piece.len() > u16::MAX as usize {
            let found = format!("{} bytes at {id}", piece.len());
            return Err(refuse("tokenizer.pieces", found, "no more than 65535 in a piece"));
        }
        if *kind == PieceKind::UserDefined && piece.len() > MOST_USER_DEFINED {
            let found = format!("{} bytes at {id}", piece.len());
            let expected = format!("no more than {MOST_USER_DEFINED} in a user-defined piece");
            return Err(refuse("tokenizer.pieces", found, &expected));
        }
        if !score.is_finite() {
            let found = format!("{score} at {id}");
            return Err(refuse("tokenizer.scores", found, "finite numbers"));
        }
    }
    Ok(())
}

/// The one piece for what is unknown.
pub(super) fn unknown(pieces: &Pieces, kinds: &[PieceKind]) -> Result<u32> {
    let mut found = (0..pieces.len() as u32).zip(kinds);
    let mut next = || found.find(|(_, kind)| **kind == PieceKind::Unknown).map(|(id, _)| id);
    match (next(), next()) {
        (Some(id), None) => Ok(id),
        (Some(first), Some(second)) => {
            let found = format!("{first} and {second} for what is unknown");
            Err(refuse("tokenizer.kinds", found, "one piece for that"))
        }
        (None, _) => {
            let found = "no piece for what is unknown".to_owned();
            Err(refuse("tokenizer.kinds", found, "one such piece"))
        }
    }
}

/// The piece of each byte, or `unknown` for all.
pub(super) fn byte_pieces(
    pieces: &Pieces,
    kinds: &[PieceKind],
    byte_fallback: bool,
    unknown: u32,
) -> Result<[u32; 256]> {
    let mut bytes = [unknown; 256];
    let mut n = 0;
    for ((id, piece), kind) in pieces.iter().zip(kinds) {
        if *kind != PieceKind::Byte {
            continue;
        }
        match byte_of(piece) {
            Some(byte) if bytes[usize::from(byte)] == unknown => bytes[usize::from(byte)] = id,
            Some(_) | None => {
                let found = format!("{} at {id}", shown(piece));
                return Err(refuse("tokenizer.pieces", found, "<0x00> to <0xFF>, each once"));
            }
        }
        n += 1;
    }
    if byte_fallback && n < 256 {
        let found = format!("{n} bytes of 256");
        return Err(refuse("tokenizer.pieces", found, "all of them, with byte_fallback"));
    }
    Ok(bytes)
}

/// The byte that a piece such as `<0x0A>` spells.
pub(in crate::tokenizer) fn byte_of(piece: &[u8]) -> Option<u8> {
    let digits = piece.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let is_upper = |digit: &u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
    if digits.len() != 2 || !digits.iter().all(is_upper) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// What each piece adds to a text.
pub(super) fn shown_pieces(
    pieces: &Pieces,
    kinds: &[PieceKind],
    unknown_text: &str,
    special: &HashSet<u32>,
) -> Result<Pieces> {
    let mut all = PiecesBuilder::new(pieces.len(), pieces.bytes().len() + unknown_text.len())?;
    for ((id, piece), kind) in pieces.iter().zip(kinds) {
        match kind {
            _ if special.contains(&id) => {}
            PieceKind::Control => {}
            PieceKind::Unknown => all.add(unknown_text.as_bytes()),
            PieceKind::Byte => all.add(byte_of(piece).as_slice()),
            PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
                let mut rest = piece;
                while let Some(at) = rest.windows(META.len()).position(|window| window == META) {
                    all.add(&rest[..at]);
                    all.add(b" ");
                    rest = &rest[at + META.len()..];
                }
                all.add(rest);
            }
        }
        all.end_piece();
    }
    Ok(all.finish())
}
