//! Tokenizers in model files: what is written is what is read, and damaged or hostile files and parts
//! are refused without a panic.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use safetensors::SafeTensors;
use teeny_runtime::format::{self, write_model};
use teeny_runtime::tokenizer::{
    AddedToken, Bpe, BpeParts, Decoder, Dialect, FirstSpace, Metaspace, Pattern, PieceKind,
    PieceModel, SentencePiece, SentencePieceParts, Specials, Tokenizer,
};
use teeny_runtime::{
    Cpu, Dtype, Ffn, GenerateOptions, Model, ModelConfig, Norm, Overflow, PositionalEncoding,
    Sampler, SamplerOptions, Session, Weights, generate,
};

/// Bytes, a few words, marks.
fn bpe(pattern: Pattern, ignore_merges: bool) -> Tokenizer {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut merges = Vec::new();
    let mut merge = |left: u32, right: u32| {
        let both = [tokens[left as usize].clone(), tokens[right as usize].clone()].concat();
        tokens.push(both);
        merges.push((left, right));
        tokens.len() as u32 - 1
    };
    let th = merge(b't'.into(), b'h'.into());
    let the = merge(th, b'e'.into());
    merge(b' '.into(), the);
    let aa = merge(b'a'.into(), b'a'.into());
    merge(aa, aa);
    merge(0xc3, 0xa9);
    let end = tokens.len() as u32;
    tokens.extend([b"<|end|>".to_vec(), b"<|user|>".to_vec(), Vec::new()]);
    let user = AddedToken { special: false, ..AddedToken::special(end + 1, "<|user|>") };
    Tokenizer::Bpe(
        Bpe::new(BpeParts {
            tokens,
            merges,
            pattern,
            ignore_merges,
            added: vec![AddedToken::special(end, "<|end|>"), user],
            specials: Specials { bos: Some(end), eos: vec![end], add_bos: true },
        })
        .expect("valid parts"),
    )
}

fn sentencepiece(model: PieceModel) -> Tokenizer {
    let mut pieces = vec![
        (b"<unk>".to_vec(), 0.0, PieceKind::Unknown),
        (b"<s>".to_vec(), 0.0, PieceKind::Control),
        (b"</s>".to_vec(), 0.0, PieceKind::Control),
    ];
    for byte in 0..=255 {
        pieces.push((format!("<0x{byte:02X}>").into_bytes(), 0.0, PieceKind::Byte));
    }
    for (text, score) in [("▁", -2.0), ("a", -3.0), ("b", -4.0), ("ab", -3.5), ("▁a", -2.5)] {
        pieces.push((text.as_bytes().to_vec(), score, PieceKind::Normal));
    }
    pieces.push((b"ba".to_vec(), -1.0, PieceKind::Unused));
    pieces.push((b"[x]".to_vec(), 0.0, PieceKind::UserDefined));
    Tokenizer::SentencePiece(
        SentencePiece::new(SentencePieceParts {
            pieces,
            model,
            byte_fallback: true,
            specials: Specials { bos: Some(1), eos: vec![2], add_bos: true },
            ..SentencePieceParts::default()
        })
        .expect("valid parts"),
    )
}

/// Merges by rank, with a rule and with tokens that take white space.
fn metaspace(split: bool, decoder: FirstSpace) -> Tokenizer {
    let mut pieces = vec![(b"<unk>".to_vec(), 0.0, PieceKind::Unknown)];
    for byte in 0..=255 {
        pieces.push((format!("<0x{byte:02X}>").into_bytes(), 0.0, PieceKind::Byte));
    }
    for text in ["▁", "a", "b", "ab", "▁ab", "aa", "aaaa", "▁▁"] {
        pieces.push((text.as_bytes().to_vec(), 0.0, PieceKind::Normal));
    }
    let merges = vec![(258, 259), (257, 260), (258, 258), (262, 262), (257, 257)];
    for text in ["<|end|>", "<|left|>", "<|right|>", "\t"] {
        pieces.push((text.as_bytes().to_vec(), 0.0, PieceKind::Control));
    }
    let added = vec![
        AddedToken::special(265, "<|end|>"),
        AddedToken { lstrip: true, ..AddedToken::special(266, "<|left|>") },
        AddedToken { rstrip: true, special: false, ..AddedToken::special(267, "<|right|>") },
        // White space itself, in front of which there may be much more.
        AddedToken { lstrip: true, ..AddedToken::special(268, "\t") },
    ];
    Tokenizer::SentencePiece(
        SentencePiece::new(SentencePieceParts {
            pieces,
            model: PieceModel::Bpe,
            merges,
            byte_fallback: true,
            remove_extra_whitespaces: false,
            charsmap: charsmap(b'Q', b"a b"),
            unknown_text: "<unk>".to_owned(),
            added,
            specials: Specials { bos: Some(265), eos: vec![265], add_bos: true },
            dialect: Dialect::Tokenizers(Metaspace {
                unless_space: true,
                first_only: true,
                split,
                collapse: !split,
                strip: (!split, !split),
                decoder,
            }),
            ..SentencePieceParts::default()
        })
        .expect("valid parts"),
    )
}

/// The one rule that a letter becomes some text. From the root the trie goes to the node of the letter,
/// from that to the next node, whose value is the place of the text.
fn charsmap(letter: u8, text: &[u8]) -> Vec<u8> {
    let at = usize::from(letter);
    let mut units = [0u32; 256];
    units[at] = 1 << 10 | 1 << 8 | u32::from(letter);
    units[at ^ 1] = 1 << 31;
    let trie = units.iter().flat_map(|unit| unit.to_le_bytes());
    1024u32.to_le_bytes().into_iter().chain(trie).chain(text.iter().copied()).chain([0]).collect()
}

fn all() -> Vec<Tokenizer> {
    let mut all = vec![sentencepiece(PieceModel::Unigram), sentencepiece(PieceModel::Bpe)];
    all.extend([metaspace(true, FirstSpace::One), metaspace(false, FirstSpace::FirstPiece)]);
    for pattern in Pattern::ALL {
        all.extend([bpe(*pattern, false), bpe(*pattern, true)]);
    }
    all
}

// ---- text ---------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn byte_level_bpe_gives_any_bytes_back(text in prop::collection::vec(any::<u8>(), 0..200)) {
        for pattern in Pattern::ALL {
            for ignore_merges in [false, true] {
                let tokenizer = bpe(*pattern, ignore_merges);
                let tokens = tokenizer.encode_bytes(&text).expect("any bytes");
                prop_assert_eq!(tokenizer.decode(&tokens).expect("its own"), &text[..]);
            }
        }
    }

    #[test]
    fn byte_level_bpe_gives_any_text_back(text in "[ the\\na1'é\u{3000}😀]{0,120}") {
        for pattern in Pattern::ALL {
            let tokenizer = bpe(*pattern, false);
            let tokens = tokenizer.encode_plain(&text).expect("any text");
            prop_assert_eq!(tokenizer.decode(&tokens).expect("its own"), text.as_bytes());
        }
    }
}

#[test]
fn special_tokens_are_found_unless_text_is_plain() {
    let t = bpe(Pattern::Gpt2, false);
    let text = "the<|end|> the<|user|>";
    assert_eq!(t.encode(text).expect("bytes"), [257, 262, 258, 263]);
    let plain = t.encode_plain(text).expect("bytes");
    assert_eq!(plain.len(), 1 + "<|end|>".len() + 2);
    assert_eq!(t.decode(&plain).expect("its own"), text.as_bytes());
    assert_eq!(t.encode_prompt("the").expect("bytes"), [262, 257]);
    assert_eq!(t.decode(&[262, 257]).expect("its own"), b"the");
    assert!(t.is_special(262) && !t.is_special(263));
    assert_eq!(t.token_bytes(262), Some(&b""[..]));
    assert_eq!(t.token_bytes(263), Some(&b"<|user|>"[..]));
    assert_eq!(t.token_bytes(265), None);
}

/// Neither a long word nor a text of spaces or of added tokens may take the square of its length.
#[test]
fn long_words_take_no_longer_than_their_length() {
    let time = |tokenizer: &Tokenizer, text: &str| {
        let start = Instant::now();
        let tokens = tokenizer.encode(text).expect("any text");
        assert!(tokens.len() <= 4 * text.len() + 1);
        start.elapsed()
    };
    for (index, tokenizer) in all().iter().enumerate() {
        let added = ["Q", "<|left|>", "  <|right|>", "<|en", "\t"];
        let has_added = matches!(tokenizer, Tokenizer::SentencePiece(_));
        for text in ["a", " ", "ab"].into_iter().chain(added.into_iter().filter(|_| has_added)) {
            let short = text.repeat(20_000 / text.len());
            // The best of three, as other programs run too; nothing is measured below a few ms.
            let best = (0..3).map(|_| time(tokenizer, &short)).min().expect("three times");
            let most = 40 * best.max(Duration::from_millis(5));
            let long = short.repeat(10);
            let is_fast = (0..3).any(|_| time(tokenizer, &long) <= most);
            assert!(is_fast, "tokenizer {index}, {text:?}: more than 40 times {best:?}");
        }
    }
}

#[test]
fn a_continued_text_keeps_its_space() {
    for model in [PieceModel::Unigram, PieceModel::Bpe] {
        let t = sentencepiece(model);
        let tokens = t.encode("a ab").expect("any text");
        assert_eq!(t.decode(&tokens).expect("its own"), b"a ab");
        let streamed: Vec<u8> =
            tokens.iter().flat_map(|id| t.token_bytes(*id).expect("its own")).copied().collect();
        assert_eq!(streamed, b" a ab");
        assert_eq!(Decoder::new().bytes(&t, tokens[0]), Some(&b"a"[..]));
        assert_eq!(Decoder::after_text().bytes(&t, tokens[0]), Some(&b" a"[..]));
        assert_eq!(t.encode_prompt("").expect("nothing"), [1]);
        assert_eq!(t.encode("é[x]").expect("bytes").len(), 4);
    }
}

#[test]
fn merges_by_rank_rules_and_tokens_that_take_space() {
    let t = metaspace(true, FirstSpace::One);
    assert_eq!(t.encode("ab ab").expect("any text"), [261, 261]);
    assert_eq!(t.encode("Q").expect("any text"), [257, 258, 257, 259]);
    assert_eq!(t.encode("a  <|left|>  b").expect("any text"), [257, 258, 266, 257, 257, 259]);
    assert_eq!(t.encode("a  <|right|>  b").expect("any text"), [257, 258, 257, 257, 267, 259]);
    assert_eq!(t.encode(" \n\t\t<|left|>").expect("any text"), [268, 268, 266]);
    // Between two tokens the first takes all.
    assert_eq!(t.encode("<|right|> \n <|left|>").expect("any text"), [267, 266]);
    assert_eq!(t.encode("<|right|> <|right|> a").expect("any text"), [267, 267, 258]);
    assert_eq!(t.decode(&[261, 261]).expect("its own"), b"ab ab");
    // With spaces collapsed and stripped, and all text one word.
    let t = metaspace(false, FirstSpace::FirstPiece);
    assert_eq!(t.encode("  a   b ").expect("any text"), [257, 258, 257, 259]);
    assert_eq!(t.encode_bytes(b"\xff").expect("any bytes"), [257, 240, 192, 190]);
}

/// A special token that is written like a piece of text shows nothing, and so drops nothing.
#[test]
fn an_added_token_that_begins_with_a_space_is_decoded() {
    for decoder in [None, Some(FirstSpace::One), Some(FirstSpace::FirstPiece)] {
        let dialect = decoder.map_or(Dialect::SentencePiece, |decoder| {
            Dialect::Tokenizers(Metaspace {
                unless_space: false,
                first_only: false,
                split: false,
                collapse: false,
                strip: (false, false),
                decoder,
            })
        });
        let t = SentencePiece::new(SentencePieceParts {
            pieces: vec![
                (b"<unk>".to_vec(), 0.0, PieceKind::Unknown),
                ("▁a".into(), 0.0, PieceKind::Normal),
                ("▁b".into(), 0.0, PieceKind::Normal),
            ],
            added: vec![AddedToken::special(1, "▁a")],
            dialect,
            ..SentencePieceParts::default()
        });
        let t = Tokenizer::SentencePiece(t.expect("valid parts"));
        assert_eq!(Decoder::new().bytes(&t, 1), Some(&b""[..]), "{decoder:?}");
        assert_eq!(t.decode(&[1, 2]).expect("in the vocabulary").last(), Some(&b'b'));
    }
}

/// As `tokenizers` 0.23.3 decodes with `ByteFallback` and `Metaspace`.
#[test]
fn only_spaces_of_the_first_piece_are_dropped() {
    let t = metaspace(true, FirstSpace::FirstPiece);
    for (tokens, text) in [
        (&[1 + 0x20, 258][..], " a"),
        (&[258, 1 + 0x20], "a "),
        (&[257, 257, 258], " a"),
        (&[264, 258], "a"),
        (&[265, 257, 258], "a"),
        (&[265, 1 + 0x20, 258], " a"),
        (&[1 + 0x20, 257, 258], "  a"),
        (&[257, 1 + 0x20, 258], " a"),
        (&[0, 257], "<unk> "),
    ] {
        assert_eq!(t.decode(tokens).expect("in the vocabulary"), text.as_bytes(), "{tokens:?}");
    }
}

/// The model always draws the same piece, so the text is known.
#[test]
fn generated_text_begins_as_decoded_text_does() {
    let tokenizer = sentencepiece(PieceModel::Bpe);
    let drawn = tokenizer.encode("a").expect("any text")[0];
    let file = File::with_values(&tokenizer, Dtype::F32, &mut |spec| {
        let mut values = vec![0.5; spec.len()];
        if spec.name == "lm_head.bias" {
            values[drawn as usize] = 9.0;
        }
        values
    });
    let weights = Weights::map(&file.0).expect("a file of our own");
    let model = Arc::new(Model::load(Cpu::new(), &weights).expect("enough memory"));
    let generated = |prompt: &[u32]| {
        let mut session = Session::new(&model, Overflow::Slide).expect("enough memory");
        let greedy = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
        let mut sampler = Sampler::new(greedy).expect("valid");
        let options = GenerateOptions { max_tokens: 3, ..GenerateOptions::default() };
        let mut text = String::new();
        generate(&mut session, &mut sampler, prompt, &options, &mut |piece| {
            text.push_str(piece);
            ControlFlow::Continue(())
        })
        .expect("it generates");
        text
    };
    let bos = tokenizer.encode_prompt("").expect("nothing");
    assert_eq!(generated(&bos), "a a a");
    assert_eq!(tokenizer.decode(&[1, drawn, drawn, drawn]).expect("its own"), b"a a a");
    let prompt = tokenizer.encode_prompt("b").expect("any text");
    assert_eq!(generated(&prompt), " a a a");
}

// ---- files --------------------------------------------------------------------------------------

fn config(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        n_layer: 1,
        n_head: 1,
        n_kv_head: 1,
        n_embd: 2,
        head_dim: 2,
        ffn_dim: 3,
        max_seq_len: 8,
        positional_encoding: PositionalEncoding::Rope,
        rope_theta: 10000.0,
        rope_scaling: None,
        norm: Norm::RmsNorm,
        norm_eps: 1e-5,
        final_norm: true,
        ffn: Ffn::Classic,
        attention_bias: true,
        ffn_bias: true,
        norm_bias: false,
        lm_head_bias: true,
        tie_embeddings: false,
        qk_norm: false,
        logit_softcap: 0.0,
    }
}

/// A model file, in a folder of its own that vanishes.
struct File(std::path::PathBuf);

impl File {
    fn new(tokenizer: &Tokenizer, dtype: Dtype) -> File {
        File::with_values(tokenizer, dtype, &mut |spec| vec![0.5; spec.len()])
    }

    fn with_values(
        tokenizer: &Tokenizer,
        dtype: Dtype,
        values: &mut dyn FnMut(&format::TensorSpec) -> Vec<f32>,
    ) -> File {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir();
        let name = format!("teeny-tokenizer-{}-{count}.safetensors", std::process::id());
        let file = File(folder.join(name));
        let config = config(tokenizer.vocab_size());
        write_model(&file.0, &config, tokenizer, &[], dtype, values).expect("a valid model");
        file
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The oracle of the file is the crate safetensors.
#[test]
fn tokenizers_in_files_come_back() {
    for tokenizer in all() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Q8] {
            let file = File::new(&tokenizer, dtype);
            let weights = Weights::map(&file.0).expect("a file of our own");
            assert_eq!(weights.tokenizer(), &tokenizer);
            assert_eq!(weights.metadata()["format_version"], "4");
            let bytes = std::fs::read(&file.0).expect("just written");
            let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("valid");
            for (name, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                let size = info.dtype.bitsize() / 8;
                assert_eq!((8 + header + start) % size, 0, "{name}");
                assert!((end - start) % 64 > 0 || (8 + header + start) % 64 == 0, "{name}");
            }
            // Converting keeps it.
            let again = File::new(&tokenizer, dtype);
            weights.write(&again.0, Dtype::F16).expect("writable");
            let converted = Weights::read(&again.0).expect("a file of our own");
            assert_eq!(converted.tokenizer(), &tokenizer);
            assert_ne!(converted.fingerprint(), weights.fingerprint());
        }
    }
}

#[test]
fn another_vocabulary_has_another_fingerprint() {
    let fingerprint = |merge: (u32, u32)| {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.push(vec![merge.0 as u8, merge.1 as u8]);
        let parts = BpeParts { tokens, merges: vec![merge], ..BpeParts::default() };
        let file = File::new(&Tokenizer::Bpe(Bpe::new(parts).expect("valid")), Dtype::F32);
        Weights::map(&file.0).expect("our own").fingerprint()
    };
    assert_ne!(fingerprint((97, 98)), fingerprint((98, 97)));
    assert_eq!(fingerprint((97, 98)), fingerprint((97, 98)));
}

/// Every change of a byte of the header or of the tables gives an error or a tokenizer that works.
#[test]
fn damaged_files_are_refused_or_harmless() {
    let mut random = Random(1);
    let mut refused = 0;
    for tokenizer in all() {
        let file = File::new(&tokenizer, Dtype::F32);
        let bytes = std::fs::read(&file.0).expect("just written");
        for n in 0..400 {
            let mut changed = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(changed.len().max(1));
                match n % 3 {
                    0 => changed[at] = random.bits() as u8,
                    1 => changed[at] ^= 1 << random.below(8),
                    _ => changed.truncate(at.max(8)),
                }
            }
            match Weights::from_bytes(&changed) {
                Ok(weights) => exercise(weights.tokenizer()),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1000, "{refused} were refused");
}

/// The tables alone, so that the header does not catch what is wrong with them.
#[test]
fn damaged_tables_are_refused_or_harmless() {
    let mut random = Random(2);
    let (mut refused, mut taken) = (0, 0);
    for tokenizer in all() {
        let json = tokenizer.to_json();
        for _ in 0..1000 {
            let mut tables = tokenizer.tables();
            for _ in 0..=random.below(3) {
                let which = random.below(tables.len());
                let bytes = tables[which].bytes.to_mut();
                let at = random.below(bytes.len());
                bytes[at] = if random.below(2) == 0 { random.bits() as u8 } else { bytes[at] ^ 1 };
            }
            match Tokenizer::from_json_and_tables(&json, &tables) {
                Ok(tokenizer) => {
                    exercise(&tokenizer);
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1000 && taken > 1000, "{refused} refused, {taken} taken");
}

fn exercise(tokenizer: &Tokenizer) {
    let text = "a the ab [x]<|end|> Q <|left|> <|right|> é 12\u{2581}\n\n  ba aaaa";
    if let Ok(tokens) = tokenizer.encode(text) {
        tokenizer.decode(&tokens).expect("its own tokens");
    }
    let _ = tokenizer.encode_bytes(b"\xff\x00 a\xc3");
    let _ = tokenizer.encode_prompt("a");
    let all: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
    tokenizer.decode(&all).expect("in the vocabulary");
}

#[test]
fn each_wrong_part_of_a_file_is_named() {
    let tokenizer = bpe(Pattern::Gpt2, false);
    let (json, tables) = (tokenizer.to_json(), tokenizer.tables());
    let from = |json: &str, tables: &[teeny_runtime::tokenizer::Table<'_>]| {
        Tokenizer::from_json_and_tables(json, tables).expect_err("wrong").to_string()
    };
    let changed = |from_: &str, to: &str| {
        assert!(json.contains(from_), "{from_} is in {json}");
        from(&json.replace(from_, to), &tables)
    };
    assert!(
        changed(r#""gpt2""#, r#""gpt7""#).contains("pattern \"gpt7\", expected gpt2, llama3 or")
    );
    assert!(changed(r#""bos":262"#, r#""bos":265"#).contains("id 265, expected ids below 265"));
    assert!(changed(r#""bos":262"#, r#""bos":-1"#).contains("bos -1"));
    assert!(changed(r#""bos":262,"#, "").contains("add_bos: found no bos"));
    assert!(changed(r#""id":263"#, r#""id":4000000000"#).contains("4000000000"));
    assert!(changed("<|user|>", "<|end|>").contains("\"<|end|>\" twice"));
    assert!(changed("<|user|>", "").contains("added token: found \"\" with id 263"));
    let long = changed("<|user|>", &"u".repeat(1025));
    assert!(long.contains("1025 bytes with id 263, expected no more than 1024"), "{long}");
    assert!(changed(r#""type":"bpe""#, r#""type":"sentencepiece""#).contains("model nothing"));
    assert!(from(&json, &tables[1..]).contains("tokenizer.pieces: found nothing"));
    assert!(
        from(r#"{"type":"char","chars":"ab"}"#, &tables).contains("tokenizer.pieces: found it")
    );
    let with = |which: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut tables = tables.clone();
        change(tables[which].bytes.to_mut());
        from(&json, &tables)
    };
    assert!(with(0, &|bytes| bytes.push(0)).contains("tokenizer.pieces: found"));
    assert!(with(1, &|ends| ends[3] = 1).contains("tokenizer.ends: found"));
    assert!(
        with(2, &|merges| merges[0] = 0).contains("tokenizer.merges: found 0 and 104 to 256 at 0")
    );
    assert!(
        with(2, &|merges| merges.copy_within(0..12, 12)).contains("116 and 104 a second time at 1")
    );
    let piece = |change: &dyn Fn(&mut SentencePieceParts)| {
        let mut parts = SentencePieceParts {
            pieces: vec![
                (b"<unk>".to_vec(), 0.0, PieceKind::Unknown),
                (b"a".to_vec(), 0.0, PieceKind::Normal),
            ],
            ..SentencePieceParts::default()
        };
        change(&mut parts);
        SentencePiece::new(parts).expect_err("wrong").to_string()
    };
    assert!(piece(&|parts| parts.byte_fallback = true).contains("0 bytes of 256"));
    assert!(piece(&|parts| parts.pieces[1].1 = f32::NAN).contains("NaN at 1"));
    assert!(piece(&|parts| parts.pieces[1].0.clear()).contains("nothing at 1"));
    assert!(piece(&|parts| parts.pieces[1].0 = vec![b'a'; 70_000]).contains("70000 bytes at 1"));
    assert!(piece(&|parts| parts.pieces[1].2 = PieceKind::Byte).contains("\"a\" at 1"));
    assert!(piece(&|parts| parts.pieces[1].2 = PieceKind::Unknown).contains("0 and 1 for what"));
    assert!(piece(&|parts| parts.pieces[0].2 = PieceKind::Normal).contains("no piece for what"));
    assert!(piece(&|parts| parts.charsmap = vec![1, 2, 3]).contains("tokenizer.charsmap"));
    let long = piece(&|parts| parts.charsmap = charsmap(b'a', &[b'a'; 1025]));
    assert!(long.contains("a replacement of 1025 bytes, expected no more than 1024"), "{long}");
    let user = (vec![b'a'; 1025], 0.0, PieceKind::UserDefined);
    let long = piece(&|parts| parts.pieces[1] = user.clone());
    assert!(
        long.contains("1025 bytes at 1, expected no more than 1024 in a user-defined"),
        "{long}"
    );
    assert!(piece(&|parts| parts.specials.eos = vec![2]).contains("id 2, expected ids below 2"));
    assert!(piece(&|parts| parts.merges = vec![(1, 1)]).contains("no token for 1 and 1 at 0"));
    let (json, tables) = (tokenizer.to_json(), tokenizer.tables());
    assert_eq!(Tokenizer::from_json_and_tables(&json, &tables).expect("as it was"), tokenizer);
    assert_eq!(format::TABLES_VERSION, "4");
}

// ---- other libraries' files ---------------------------------------------------------------------

/// A model file of sentencepiece, by hand: three pieces and a trainer that says BPE.
const MODEL: &[u8] =
    b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02\x0a\x0c\x0a\x03<s>\x15\0\0\0\0\x18\x03\
    \x0a\x0a\x0a\x01a\x15\0\0\x80\xbf\x18\x01\x12\x02\x18\x02\x1a\x04\x18\0\x20\x01";

#[test]
fn damaged_models_of_sentencepiece_are_refused_or_harmless() {
    let model = SentencePiece::from_model(MODEL).expect("a model");
    assert_eq!(model.piece(2), Some((&b"a"[..], -1.0, PieceKind::Normal)));
    assert_eq!(model.specials().bos, Some(1));
    assert_eq!(model.encode_bytes(b"aa", true).expect("any bytes"), [2, 2]);
    for n in 0..MODEL.len() {
        let _ = SentencePiece::from_model(&MODEL[..n]);
        for value in 0..=255 {
            let mut changed = MODEL.to_vec();
            changed[n] = value;
            if let Ok(model) = SentencePiece::from_model(&changed) {
                exercise(&Tokenizer::SentencePiece(model));
            }
        }
    }
    let refused = |bytes: &[u8]| SentencePiece::from_model(bytes).expect_err("wrong").to_string();
    assert!(refused(b"").contains("no piece for what is unknown"));
    assert!(refused(b"\x0a\xff").contains("SentencePiece model: found a damaged field"));
    assert!(refused(&[0xff; 20]).contains("a damaged field"));
    assert!(refused(b"\x12\x02\x18\x03").contains("found words, expected unigram or bpe"));
}

const JSON: &str = r#"{"added_tokens":[{"id":3,"content":"<|end|>","single_word":false,"lstrip":false,
"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel",
"add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":{"type":
"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A",
"type_id":0}}],"pair":[],"special_tokens":{"<|end|>":{"id":"<|end|>","ids":[3],"tokens":["<|end|>"]}}},
"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","dropout":null,"unk_token":null,
"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
"ignore_merges":false,"vocab":{"a":0,"Ġ":1,"Ġa":2},"merges":[["Ġ","a"]]}}"#;

#[test]
fn json_of_tokenizers_is_read_or_refused_by_name() {
    let read = |json: &str| Tokenizer::from_hf_json(json, None, None);
    let t = read(JSON).expect("a tokenizer");
    assert_eq!(t.encode(" a<|end|>a").expect("known"), [2, 3, 0]);
    assert_eq!(t.encode_prompt("a").expect("known"), [3, 0]);
    let specials = t.specials().expect("some");
    assert_eq!((specials.bos, specials.add_bos, specials.eos.len()), (Some(3), true, 0));
    let config =
        r#"{"bos_token":{"content":"<|end|>"},"eos_token":"<|end|>","add_bos_token":false}"#;
    let with = Tokenizer::from_hf_json(JSON, Some(config), Some(8)).expect("a tokenizer");
    assert_eq!(with.vocab_size(), 8);
    assert_eq!(with.token_bytes(7), Some(&b""[..]));
    let specials = with.specials().expect("some");
    assert_eq!((specials.bos, specials.add_bos, &specials.eos[..]), (Some(3), false, &[3][..]));
    let error = t.encode("b").expect_err("no such byte").to_string();
    assert_eq!(error, "tokenizer: byte 0x62, in \"b\", has no token");
    for (from, to, named) in [
        ("\"BPE\"", "\"WordPiece\"", "WordPiece"),
        ("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", "normalizer"),
        ("\"use_regex\":true", "\"use_regex\":false", "pre_tokenizer"),
        ("\"add_prefix_space\":false", "\"add_prefix_space\":true", "pre_tokenizer"),
        ("\"dropout\":null", "\"dropout\":0.1", "dropout 0.1"),
        ("\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", "end_of_word_suffix"),
        ("\"byte_fallback\":false", "\"byte_fallback\":true", "byte_fallback"),
        ("TemplateProcessing", "RobertaProcessing", "RobertaProcessing"),
        ("\"single_word\":false", "\"single_word\":true", "single_word"),
        ("[\"Ġ\",\"a\"]", "[\"Ġ\",\"b\"]", "merges"),
        ("[\"Ġ\",\"a\"]", "[\"a\",\"a\"]", "no token for 0 and 0 at 0"),
        ("\"Ġ\":1", "\"Ġ\":0", "with id 0"),
        ("\"Ġ\":1", "\"Ġ\":4294967295", "without a usual id"),
        ("\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":null", "unk_token"),
        ("{\"added", "[\"added", "no JSON"),
        (
            "{\"Sequence\"",
            "{\"SpecialToken\":{\"id\":\"a\",\"type_id\":0}},{\"Sequence\"",
            "post_processor with \"a\" behind token 3, expected one token in front of a text",
        ),
    ] {
        refused(JSON, from, to, named);
    }
    damage(JSON, 3);
}

/// What is behind a text is left out, and which token ends one is known by its name where nothing says so.
#[test]
fn what_ends_a_text_is_found_by_name() {
    let json = JSON.replace("<|end|>", "<|endoftext|>");
    let eos = |json: &str, config: Option<&str>| {
        let t = Tokenizer::from_hf_json(json, config, None).expect("a tokenizer");
        let specials = t.specials().expect("some");
        assert_eq!((specials.bos, specials.add_bos), (Some(3), true));
        specials.eos.clone()
    };
    assert_eq!(eos(&json, None), [3]);
    assert_eq!(eos(&json, Some("{}")), [3]);
    assert_eq!(eos(&json, Some(r#"{"bos_token":"<|endoftext|>","eos_token":null}"#)), [3]);
    assert_eq!(eos(&json, Some(r#"{"eos_token":"a"}"#)), [0]);
    let behind = json.replace(
        r#""type_id":0}}],"pair""#,
        r#""type_id":0}},{"SpecialToken":{"id":"a","type_id":0}}],"pair""#,
    );
    assert_ne!(behind, json);
    assert_eq!(eos(&behind, None), [3]);
}

/// A small file must not name ids that fill the memory.
#[test]
fn ids_of_added_tokens_are_close_together() {
    let token = |id: usize| {
        format!(r#"{{"id":{id},"content":"<{id}>","special":true,"normalized":false}}"#)
    };
    let json = |ids: &[usize]| {
        let tokens: Vec<String> = ids.iter().map(|id| token(*id)).collect();
        let added = JSON.find("}],").expect("the end of added_tokens") + 1;
        format!("{},{}{}", &JSON[..added], tokens.join(","), &JSON[added..])
    };
    let read = |ids: &[usize]| Tokenizer::from_hf_json(&json(ids), None, None);
    assert_eq!(read(&[4, 1000]).expect("a few ids left out").vocab_size(), 1001);
    let error = read(&[1000, 2000, 4000, 8000]).expect_err("each twice as far").to_string();
    assert!(error.contains("found id 2000, expected id, an id"), "{error}");
    // Many of them are no reason to refuse them.
    let many: Vec<usize> = (4..5000).collect();
    assert_eq!(read(&many).expect("close together").vocab_size(), 5000);
}

/// What SentencePiece's models are converted to.
const METASPACE: &str = r#"{"added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,
"rstrip":false,"normalized":false,"special":true},{"id":3,"content":"<|end|>","single_word":false,
"lstrip":true,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence",
"normalizers":[{"type":"Precompiled","precompiled_charsmap":""},{"type":"Strip","strip_left":false,
"strip_right":true},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]},"pre_tokenizer":{"type":
"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"post_processor":null,"decoder":
{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"model":{"type":"Unigram",
"unk_id":0,"byte_fallback":false,"vocab":[["<unk>",0.0],["▁",-1.5],["a",-2.0],["<|end|>",0.0],["▁a",-1.0]]}}"#;

/// As Llama 2's.
const PREPEND: &str = r#"{"added_tokens":[{"id":0,"content":"<unk>","special":true}],"normalizer":{"type":
"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},
"content":"▁"}]},"pre_tokenizer":null,"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":
{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":
1,"stop":0}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":false,
"ignore_merges":false,"vocab":{"<unk>":0,"▁":1,"a":2,"▁a":3},"merges":["▁ a"]}}"#;

#[test]
fn json_with_spaces_as_pieces_is_read_or_refused_by_name() {
    let read = |json: &str| Tokenizer::from_hf_json(json, None, None).expect("a tokenizer");
    let t = read(METASPACE);
    assert_eq!(t.encode("a  a <|end|>b").expect("any text"), [4, 4, 3, 1, 0]);
    assert_eq!(t.decode(&[4, 4, 3]).expect("its own"), b"a a");
    let t = read(PREPEND);
    assert_eq!(t.encode("a ab").expect("any text"), [3, 3, 0]);
    assert_eq!(t.decode(&[3, 3]).expect("its own"), b"a a");
    let kind = "one that SentencePiece models are converted to";
    for (from, to, named) in [
        ("\"Precompiled\"", "\"NFKC\"", kind),
        ("\"precompiled_charsmap\":\"\"", "\"precompiled_charsmap\":\"!\"", kind),
        ("\"precompiled_charsmap\":\"\"", "\"precompiled_charsmap\":\"AAA=\"", "found 2 bytes"),
        ("\"Strip\"", "\"Precompiled\",\"precompiled_charsmap\":\"\"", "found normalizer"),
        (" {2,}", " +", kind),
        (
            "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\" \"}",
            "{\"type\":\"Prepend\",\"prepend\":\"▁\"}",
            "found pre_tokenizer",
        ),
        (
            "{\"Regex\":\" {2,}\"},\"content\":\" \"",
            "{\"String\":\" \"},\"content\":\"▁\"",
            "found pre_tokenizer",
        ),
        ("\"always\",\"split\":true},\"post", "\"often\",\"split\":true},\"post", "pre_tokenizer"),
        ("always\",\"split\":true},\"model", "often\",\"split\":true},\"model", "found decoder"),
        (
            "{\"type\":\"Metaspace\",\"replacement\":\"▁\"",
            "{\"type\":\"Metaspace\",\"replacement\":\"_\"",
            "decoder",
        ),
        ("\"unk_id\":0", "\"unk_id\":null", "unk_id, the id of what is unknown"),
        ("\"unk_id\":0", "\"unk_id\":5", "no piece for what is unknown"),
        ("\"byte_fallback\":false", "\"byte_fallback\":true", "0 bytes of 256"),
        ("[\"▁\",-1.5]", "[\"▁\"]", "pairs of text and score"),
        ("[\"▁\",-1.5]", "[\"▁\",1e300]", "inf at 1, expected finite numbers"),
        ("▁a", "a▁a", "pieces with spaces in front only"),
        ("\"normalized\":false,\"special\":true}]", "\"normalized\":true}]", "normalized true"),
        ("\"lstrip\":true", "\"lstrip\":1", "lstrip, true or false"),
    ] {
        refused(METASPACE, from, to, named);
    }
    for (from, to, named) in [
        ("\"type\":\"Replace\",\"pattern\":{\"String\":\" \"}", "\"type\":\"Lowercase\"", kind),
        ("\"prepend\":\"▁\"", "\"prepend\":\" \"", kind),
        ("\"fuse_unk\":true", "\"fuse_unk\":false", "fuse_unk false"),
        ("\"ignore_merges\":false", "\"ignore_merges\":true", "ignore_merges true"),
        ("\"unk_token\":\"<unk>\"", "\"unk_token\":null", "unk_token"),
        ("\"unk_token\":\"<unk>\"", "\"unk_token\":\"b\"", "unk_token"),
        ("[\"▁ a\"]", "[]", "merges, at least one"),
        ("\"stop\":0", "\"stop\":1", "that of Llama 2 or T5"),
        ("\"start\":\n1", "\"start\":2", "that of Llama 2 or T5"),
        ("{\"type\":\"Fuse\"},", "", "that of Llama 2 or T5"),
        (
            "\"pre_tokenizer\":null",
            "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"▁\"}",
            "found pre_tokenizer",
        ),
        (
            ",{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\n\"content\":\"▁\"}",
            "",
            "no Metaspace, expected spaces as U+2581",
        ),
    ] {
        refused(PREPEND, from, to, named);
    }
    damage(METASPACE, 4);
    damage(PREPEND, 5);
}

/// The first place of a text changed in a file makes an error that says so.
fn refused(json: &str, from: &str, to: &str, named: &str) {
    assert!(json.contains(from), "{from}");
    let error = Tokenizer::from_hf_json(&json.replacen(from, to, 1), None, None);
    let error = error.expect_err(to).to_string();
    assert!(error.contains(named), "{from} to {to}: {error}");
}

/// Whatever happens to a file, it is refused or makes a tokenizer that works.
fn damage(json: &str, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..5000 {
        let mut bytes = json.as_bytes().to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = b"0123456789{}[]\",:aG"[random.below(19)],
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at + 1),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(tokenizer) = Tokenizer::from_hf_json(&text, None, None) {
            exercise(&tokenizer);
        }
    }
}

/// A 64-bit linear congruential generator.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }
}
