"""What the libraries `sentencepiece` and `tokenizers` make of texts, for runtime/tests/tokenizers.rs:

    python tests/tokenizer_cases.py CORPUS FOLDER

Trains models on the corpus and writes each to FOLDER, with a file of cases beside it: a line of JSON for
each text, with the text in hexadecimal, its tokens and what they decode to. Texts and models are the same
in every run.
"""

import json
import random
import sys
from pathlib import Path

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
CORNERS = [
    "",
    " ",
    "  ",
    "a",
    " a",
    "a ",
    "  a  b   c  ",
    "\n",
    "\n\n \n",
    "a\r\nb\r\n\r\nc",
    "\ta\t\tb \t c",
    "tabs\t \tand\n \n\nlines \n",
    "I'm you're they've we'll he'd it's don't I'M YOU'RE THEY'VE WE'LL HE'D IT'S DON'T 'S'T'LL 'x '",
    "'\u017f '\u017fa x'\u017f \u212a'\u212a",
    "'",
    "''s",
    "0 12 345 6789 01234567890 3.14 1,000,000 a1b22c333",
    "\u0661\u0662\u0663 \u0967\u0968 \u00bd\u00b2\u2460 \u2167 \u3007\u4e00 \U0001d7ce\U0001d7d9 \u096612",
    "na\u00efve re\u0301sume\u0301 a\u0300\u0301\u0302 \u0915\u094d\u0937\u093f \u1100\u1161\u11a8",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f\U0001f44d\U0001f3fd",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "a\0b\0\0 \0",
    "\x01\x02\x7f \x1b[0m",
    SPACES,
    "a".join(SPACES),
    " ".join(SPACES),
    "\u2581a \u2581 \u2581\u2581b\u2581",
    "\ufb01\ufb03 \uff21\uff42\uff13 \u2460 \u33a5 \u00c5\u212b \u1e9b\u0323 \u3000\uff0a",
    "<s>a</s> <unk><pad>",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c<|endoftext|><|endoftext|>",
    " <|left|>a  <|left|> b\n<|left|>",
    "a<|right|> b<|right|>\n\n c<|right|>d",
    "<|both|> \t<|both|> <|left|>  <|right|> x",
    "<|endoftext| <|end <<|endoftext|>> <|user <|user|> <|user|>x  y",
    "<0x0A><0xFF> <0xZZ>",
    "\u0301a \u0301",
    "x" * 100,
    "ab" * 200,
    " " * 70 + "x" + "\n" * 70,
    "!?" * 50 + "...",
    "\ufffd \ufffe \U0010ffff",
    "ROMEO:\nBut, soft! what light through yonder window breaks?",
]
# Only for what takes any bytes.
CORNER_BYTES = [
    b"\xff",
    b"a\xffb\xc3",
    b"\xc3\xa9\xc3 \xe2\x96\x81\xe2\x96",
    b"\xed\xa0\x80 \xf4\x90\x80\x80 \xc0\xaf \xf8\x88\x80\x80\x80",
    b"\x80 \x80\x80 \xe2\x82\xac\xe2\x82",
    b" \xff \xff ",
]
ALPHABETS = [
    "ab ",
    "the and of  \n",
    "aAeE'sStTlLrRvVmMdD ",
    "0123456789 .,a",
    SPACES + "ab",
    "\u2581 ab\u2581",
    "<|>endoftxuser/s",
    "\u0300\u0301e\u00e9\u1100\u1161\u11a8\u200d\ufe0f\U0001f469",
    "\u0661\u0967\u4e00\u2460 1a",
    "\u05e9\u0645\u4f60\u3053\uc548 \uff21\u3000\ufb01",
]


def texts(corpus):
    """Texts of every kind, the corpus last."""
    rng = random.Random(1)
    made = []
    for n in range(600):
        alphabet = ALPHABETS[n % len(ALPHABETS)]
        made.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))))
    for _ in range(300):
        points = (rng.choice([0x80, 0x250, 0x2000, 0x3100, 0x20000, 0x110000]) for _ in range(20))
        points = (rng.randrange(limit) for limit in points)
        made.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    for _ in range(200):
        start = rng.randrange(len(corpus))
        made.append(corpus[start : start + rng.randrange(300)])
    return CORNERS + made + [corpus]


def damaged(corpus):
    """Bytes that are no UTF-8."""
    rng = random.Random(2)
    made = []
    for _ in range(300):
        pieces = [bytes([rng.randrange(256)]), "\u00e9\u2581 \U0001f469a".encode(), b"\xe2\x82"]
        made.append(b"".join(rng.choice(pieces) for _ in range(rng.randrange(1, 30))))
    return CORNER_BYTES + made


def write(path, cases):
    with open(path, "w", encoding="ascii") as file:
        for text, ids, decoded in cases:
            case = {"text": text.hex(), "ids": ids, "decoded": decoded.encode().hex()}
            file.write(json.dumps(case, separators=(",", ":")) + "\n")


def random_ids(n_ids):
    rng = random.Random(3)
    for n in range(400):
        top = n_ids if n % 2 else min(300, n_ids)
        yield [rng.randrange(top) for _ in range(rng.randrange(12))]


# ---- sentencepiece -----------------------------------------------------------------------------

PLAIN = {"vocab_size": 1500, "hard_vocab_limit": False}
SENTENCEPIECE = {
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity"},
    "unigram-bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram-keep": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc_cf",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
    },
    "unigram-user": {
        "model_type": "unigram",
        "user_defined_symbols": ["<|user|>", "<|user", "\u2581the\u2581", "ab"],
        "control_symbols": ["<pad>"],
        "split_by_whitespace": False,
        "byte_fallback": True,
    },
    "unigram-suffix": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
    "bpe": {"model_type": "bpe", "normalization_rule_name": "identity"},
    # As Llama 2.
    "bpe-llama": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
    },
    "bpe-nfkc": {"model_type": "bpe", "byte_fallback": True},
    "bpe-user": {
        "model_type": "bpe",
        "user_defined_symbols": ["<|user|>", "<|user", "ab", " b"],
        "add_dummy_prefix": False,
        "unk_surface": "?",
    },
    "bpe-across": {"model_type": "bpe", "split_by_whitespace": False, "byte_fallback": True},
    "bpe-suffix": {"model_type": "bpe", "treat_whitespace_as_suffix": True},
}


def sentencepieces(corpus, corpus_file, folder):
    all_texts = [text.encode() for text in texts(corpus)] + damaged(corpus)
    for name, options in SENTENCEPIECE.items():
        prefix = str(folder / name)
        sentencepiece.SentencePieceTrainer.train(
            input=corpus_file, model_prefix=prefix, num_threads=1, minloglevel=2, **PLAIN, **options
        )
        model = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
        cases(model, prefix, all_texts)
        if name in ("unigram", "bpe", "bpe-across"):
            # The same with pieces that are not used.
            prefix += "-unused"
            Path(prefix + ".model").write_bytes(with_unused(model))
            cases(sentencepiece.SentencePieceProcessor(prefix + ".model"), prefix, all_texts)


def with_unused(model):
    """The file of a model with a part of its pieces marked as unused."""
    rng = random.Random(4)
    old, new, at = model.serialized_model_proto(), b"", 0
    for id in range(model.get_piece_size()):
        # Pieces come first: a tag, and a length that one byte holds.
        assert old[at] == 0x0A and old[at + 1] < 120
        piece = old[at + 2 : at + 2 + old[at + 1]]
        at += 2 + len(piece)
        if not (model.is_control(id) or model.is_unknown(id) or model.is_byte(id)):
            piece += b"\x18\x05" if rng.random() < 0.4 else b""
        new += bytes([0x0A, len(piece)]) + piece
    return new + old[at:]


def charsmap(model):
    """The compiled rules in the file of a model."""

    def number(data, at):
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                return value, at

    def fields(data):
        at = 0
        while at < len(data):
            key, at = number(data, at)
            assert key & 7 in (0, 2, 5)
            size, at = (4, at) if key & 7 == 5 else number(data, at)
            size = 0 if key & 7 == 0 else size
            yield key >> 3, data[at : at + size]
            at += size

    normalizer = next(data for n, data in fields(model.serialized_model_proto()) if n == 3)
    return next(data for n, data in fields(normalizer) if n == 2)


def cases(model, prefix, all_texts):
    ids = model.encode(all_texts, num_threads=1)
    made = [(text, ids, model.decode(ids)) for text, ids in zip(all_texts, ids)]
    made += [(b"", ids, model.decode(ids)) for ids in random_ids(model.get_piece_size())]
    write(prefix + ".cases", made)


# ---- tokenizers --------------------------------------------------------------------------------

ADDED = [
    AddedToken("<|endoftext|>", special=True, normalized=False),
    AddedToken("<|left|>", special=True, normalized=False, lstrip=True),
    AddedToken("<|right|>", special=True, normalized=False, rstrip=True),
    AddedToken("<|both|>", special=True, normalized=False, lstrip=True, rstrip=True),
]
MORE = [
    AddedToken("<|user|>", special=False, normalized=False),
    AddedToken("<|user", special=False, normalized=True),
    AddedToken("    ", special=False, normalized=True),
]


def byte_level(corpus, pre_tokenizer, ignore_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=ADDED[:2], initial_alphabet=alphabet, show_progress=False
    )
    # The corpus has few digits and runs of spaces.
    digits = [f"{n}  {n * n}   {n * 7919}\n" for n in range(2000)] * 3
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True) + digits, trainer)
    tokenizer.add_special_tokens(ADDED)
    tokenizer.add_tokens(MORE)
    return tokenizer


def llama2(corpus, normalizer, pre_tokenizer, decoder):
    names = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=names + bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(corpus.splitlines(), trainer)
    # Bytes are ordinary tokens, and text is one word.
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in names]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    return finish(tokenizer, normalizer, pre_tokenizer, decoder)


def unigram(model_file, normalizer, pre_tokenizer, decoder, byte_fallback):
    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback))
    names = ["<unk>", "<s>", "</s>"]
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return finish(tokenizer, normalizer, pre_tokenizer, decoder)


def finish(tokenizer, normalizer, pre_tokenizer, decoder):
    parts = json.loads(tokenizer.to_str())
    parts["normalizer"] = parts["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def tokenizers(corpus, folder):
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    only_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    sequence = pre_tokenizers.Sequence
    prepend = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fallback = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = decoders.Sequence(fallback + [decoders.Strip(" ", 1, 0)])
    collapse = normalizers.Replace(Regex(" {2,}"), " ")
    always = pre_tokenizers.Metaspace(prepend_scheme="always")
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    never = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    made = {
        "gpt2": byte_level(corpus, bytes_, False),
        "llama3": byte_level(corpus, sequence([split, only_bytes]), True),
        "smollm": byte_level(corpus, sequence([digits, bytes_]), False),
        "llama2": llama2(corpus, prepend, None, strip),
        "llama2-first": llama2(corpus, None, first, strip),
        "llama2-never": llama2(corpus, None, never, decoders.Sequence(fallback)),
        "t5": unigram(str(folder / "unigram.model"), collapse, always, decoders.Metaspace(), False),
        "t5-bytes": unigram(
            str(folder / "unigram-bytes.model"),
            normalizers.Sequence([normalizers.Strip(left=False, right=True), collapse]),
            always,
            decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
            True,
        ),
    }
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "unigram-bytes.model"))
    rules = normalizers.Precompiled(charsmap(model))
    made["t5-rules"] = unigram(
        str(folder / "unigram-bytes.model"),
        normalizers.Sequence([rules, collapse]),
        always,
        decoders.Metaspace(),
        False,
    )
    all_texts = texts(corpus)
    for name, tokenizer in made.items():
        path = folder / f"{name}.json"
        tokenizer.save(str(path))
        # Without what the library keeps of earlier texts.
        encoded = tokenizer.encode_batch(all_texts, add_special_tokens=False)
        made_cases = [
            (text.encode(), found.ids, tokenizer.decode(found.ids))
            for text, found in zip(all_texts, encoded)
        ]
        n_ids = tokenizer.get_vocab_size()
        made_cases += [(b"", ids, tokenizer.decode(ids)) for ids in random_ids(n_ids)]
        write(folder / f"{name}.cases", made_cases)
        tokenizer.encode_special_tokens = True
        encoded = tokenizer.encode_batch(all_texts[:-1], add_special_tokens=False)
        write(
            folder / f"{name}.plain",
            [(text.encode(), found.ids, "") for text, found in zip(all_texts, encoded)],
        )


def main():
    corpus_file, folder = sys.argv[1], Path(sys.argv[2])
    corpus = Path(corpus_file).read_text(encoding="utf-8")
    sentencepieces(corpus, corpus_file, folder)
    tokenizers(corpus, folder)
    print("versions", sentencepiece.__version__, __import__("tokenizers").__version__)


main()
