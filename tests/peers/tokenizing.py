#!/usr/bin/env python3
"""Times tokenizers beside the libraries that they come from, in turn, on one thread:

    tests/oracles.sh
    cargo build --release -p teeny-runtime --example tokenize
    trainer/.venv/bin/python tests/peers/tokenizing.py [--rounds N] [TOKENIZER.json|MODEL.model ...]

Each tokenizer encodes tiny Shakespeare (data/fetch.sh) at once, and decodes it. Without a tokenizer it
makes some on that text: byte-level BPE with the patterns of GPT-2 and Llama 3 by `tokenizers`, BPE and
unigram by `sentencepiece`. Prints the median of the rounds in MB/s, the ratio to the library's, and the
milliseconds that teeny takes to read the tokenizer from a model file. The tokens must be the same.
TEENY_TOKENIZE names another program than target/release/examples/tokenize.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PROGRAM = os.environ.get("TEENY_TOKENIZE", TARGET / "release/examples/tokenize")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Teeny:
    """The program, which answers lines."""

    def __init__(self, file, corpus):
        command = [PROGRAM, file, corpus]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


class Library:
    """`tokenizers` or `sentencepiece`, by the file."""

    def __init__(self, file, text):
        self.megabytes = len(text.encode()) / 1e6
        self.text = text
        if file.suffix == ".model":
            model = sentencepiece.SentencePieceProcessor(model_file=str(file))
            self.name = f"sentencepiece {sentencepiece.__version__}"
            self.encode = lambda: model.encode(text, num_threads=1)
            self.decode = model.decode
        else:
            import tokenizers

            tokenizer = Tokenizer.from_file(str(file))
            self.name = f"tokenizers {tokenizers.__version__}"
            self.encode = lambda: tokenizer.encode(text, add_special_tokens=False).ids
            self.decode = tokenizer.decode
        self.ids = self.encode()

    def time(self, call):
        start = time.perf_counter()
        call()
        return self.megabytes / (time.perf_counter() - start)


def make(folder, corpus, text):
    """Tokenizers of the usual kinds, as large as the text allows."""
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    only_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    kinds = {"gpt2": bytes_, "llama3": pre_tokenizers.Sequence([split, only_bytes])}
    for name, pre_tokenizer in kinds.items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=32000, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        tokenizer.save(str(folder / f"{name}.json"))
        yield folder / f"{name}.json"
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(folder / kind),
            model_type=kind,
            vocab_size=8000,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        yield folder / f"{kind}.model"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()
    corpus = pathlib.Path(os.environ.get("TEENY_CORPUS", ROOT / "data/tiny_shakespeare.txt"))
    text = corpus.read_text(encoding="utf-8")
    print("| tokenizer | tokens | encode | library | ratio | decode | library | load, ms |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for file in arguments.files or make(pathlib.Path(folder), corpus, text):
            compare(file, corpus, text, arguments.rounds)


def compare(file, corpus, text, rounds):
    teeny, library = Teeny(file, corpus), Library(file, text)
    n_tokens, total = map(int, teeny.ask("tokens").split())
    assert (n_tokens, total) == (len(library.ids), sum(library.ids)), "the tokens are the same"
    found = {"encode": [], "decode": [], "load": [], "their encode": [], "their decode": []}
    for _ in range(rounds):
        for what in ("encode", "decode", "load"):
            found[what].append(float(teeny.ask(what)))
        found["their encode"].append(library.time(library.encode))
        found["their decode"].append(library.time(lambda: library.decode(library.ids)))
    ours = {what: statistics.median(times) for what, times in found.items()}
    print(
        f"| {file.name} ({library.name}) | {n_tokens} | {ours['encode']:.1f} "
        f"| {ours['their encode']:.2f} | {ours['encode'] / ours['their encode']:.1f} "
        f"| {ours['decode']:.0f} | {ours['their decode']:.1f} | {ours['load']:.2f} |"
    )
    teeny.process.stdin.close()
    teeny.process.wait()


main()
