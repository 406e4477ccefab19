//! Tokenizers in model files: what is written is what is read, and damaged or hostile files and parts
//! are refused without a panic.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use safetensors::SafeTensors;
use teeny_runtime::format::{self, write_model};
use teeny_runtime::tokenizer::{
    AddedToken, Bpe, BpeParts, Pattern, PieceKind, PieceModel, SentencePiece, SentencePieceParts,
    Specials, Tokenizer,
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

fn all() -> Vec<Tokenizer> {
    let mut all = vec![sentencepiece(PieceModel::Unigram), sentencepiece(PieceModel::Bpe)];
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

/// A long word must not take the square of its length, nor a text of spaces.
#[test]
fn long_words_take_no_longer_than_their_length() {
    for tokenizer in all() {
        for text in ["a".repeat(200_000), " ".repeat(200_000), "ab".repeat(100_000)] {
            let tokens = tokenizer.encode(&text).expect("any text");
            assert!(tokens.len() <= 200_001);
        }
    }
}

#[test]
fn a_continued_text_keeps_its_space() {
    for model in [PieceModel::Unigram, PieceModel::Bpe] {
        let t = sentencepiece(model);
        assert!(t.strips_first_space());
        let tokens = t.encode("a ab").expect("any text");
        assert_eq!(t.decode(&tokens).expect("its own"), b"a ab");
        let streamed: Vec<u8> =
            tokens.iter().flat_map(|id| t.token_bytes(*id).expect("its own")).copied().collect();
        assert_eq!(streamed, b" a ab");
        assert_eq!(t.encode_prompt("").expect("nothing"), [1]);
        assert_eq!(t.encode("é[x]").expect("bytes").len(), 4);
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
    let text = "a the ab [x]<|end|>é 12\u{2581}\n\n  ba aaaa";
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
    assert!(piece(&|parts| parts.specials.eos = vec![2]).contains("id 2, expected ids below 2"));
    assert!(piece(&|parts| parts.merges = vec![(1, 1)]).contains("no piece for 1 and 1 at 0"));
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
    ] {
        assert!(JSON.contains(from), "{from}");
        let error = read(&JSON.replace(from, to)).expect_err(to).to_string();
        assert!(error.contains(named), "{from} to {to}: {error}");
    }
    let mut random = Random(3);
    for _ in 0..5000 {
        let mut bytes = JSON.as_bytes().to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = b"0123456789{}[]\",:aG"[random.below(19)],
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at + 1),
            }
        }
        if let Ok(tokenizer) = read(&String::from_utf8_lossy(&bytes)) {
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
