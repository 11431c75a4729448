"""Train the built-in demo model on the story grammar and export it in Hugging Face layout.

    python train.py --out demo-model --minutes 35

The run is sized by time: the learning rate follows a cosine over the given minutes. An export is
written now and then and at the end, so a stopped run still leaves a usable model.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chats import make_chat
from grammar import make_story

EOS, USER, ASSISTANT, END = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = [EOS, USER, ASSISTANT, END]
LEADING_EOS_SHARE = 0.3  # so that an empty prompt can start from <|endoftext|>
MAX_TOKENS = 512
# System messages are accepted and left out: the model was never trained on any.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] | trim }}<|end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_document(rng, chat_share=0.35):
    """One training document as (text, is it trained on) pieces, without the closing eos."""
    if rng.random() >= chat_share:
        return [(make_story(rng).text, True)]
    pieces = []
    for message in make_chat(rng):
        if message["role"] == "user":
            pieces.append((USER + message["content"] + END + ASSISTANT, False))
        else:
            pieces.append((message["content"] + END, True))
    return pieces


def train_tokenizer(documents, vocab_size, seed):
    """A byte-level BPE tokenizer on grammar samples."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    rng = random.Random(seed)
    texts = ("".join(text for text, _ in make_document(rng)).replace(USER, " ").replace(ASSISTANT, " ")
             .replace(END, " ") for _ in range(documents))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, pad_token=EOS, add_bos_token=False,
        add_eos_token=False, clean_up_tokenization_spaces=False, model_max_length=MAX_TOKENS,
        chat_template=CHAT_TEMPLATE)


def encode(tokenizer, documents, rng):
    """Token ids and labels of documents; user turns carry the label -100 (no loss)."""
    pieces = [piece for document in documents for piece in document]
    encoded = iter(tokenizer._tokenizer.encode_batch([text for text, _ in pieces]))
    eos = tokenizer.eos_token_id
    rows = []
    for document in documents:
        ids, labels = ([eos], [-100]) if rng.random() < LEADING_EOS_SHARE else ([], [])
        for _, trained in document:
            piece = next(encoded).ids
            ids += piece
            labels += piece if trained else [-100] * len(piece)
        rows.append((ids + [eos], labels + [eos]))
    return [row for row in rows if len(row[0]) <= MAX_TOKENS]


def pad(rows, filler):
    """Stack rows of similar length; padding has no loss and, being last, is never attended to."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [filler] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def batches(tokenizer, seed, batch_tokens, chat_share, pool=2048):
    """Endless batches, one document per row, rows of similar length together."""
    rng = random.Random(seed)
    while True:
        rows = encode(tokenizer, [make_document(rng, chat_share) for _ in range(pool)], rng)
        rows.sort(key=lambda row: len(row[0]))
        groups, group = [], []
        for row in rows:
            if group and len(row[0]) * (len(group) + 1) > batch_tokens:
                groups.append(group)
                group = []
            group.append(row)
        rng.shuffle(groups)
        yield from (pad(group, tokenizer.eos_token_id) for group in groups)


def build_model(tokenizer, args):
    """A small Llama with grouped-query attention and a tied head."""
    ids = tokenizer.convert_tokens_to_ids([EOS, END])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=args.hidden, intermediate_size=args.intermediate,
        num_hidden_layers=args.layers, num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads, head_dim=args.hidden // args.heads, rms_norm_eps=1e-5,
        max_position_embeddings=MAX_TOKENS, tie_word_embeddings=True, bos_token_id=ids[0],
        eos_token_id=ids, pad_token_id=ids[0], initializer_range=0.02)
    return LlamaForCausalLM(config)


def loss_of(model, ids, labels, bf16=False):
    """Mean next-token loss over the labelled tokens."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def optimizer_for(model, args):
    """AdamW; norms are left without weight decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": args.weight_decay},
                              {"params": vectors, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.97))


def learning_rate(args, step, progress):
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    warm = min(1.0, (step + 1) / args.warmup)
    return args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def export(model, tokenizer, out):
    """Write the model in Hub layout: bf16 weights, tokenizer, chat template, generation defaults."""
    out.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    half.tie_weights()
    half.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=list(model.config.eos_token_id),
        pad_token_id=model.config.pad_token_id, do_sample=True, temperature=0.7, top_p=0.95,
        max_new_tokens=256)
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)
    tidy_configs(out)


def tidy_configs(out):
    """Keep the chat template inside tokenizer_config.json, drop traces of the machine, and name
    the RoPE base the older way, too, for readers that do not know `rope_parameters`."""
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"chat_template": CHAT_TEMPLATE, "add_bos_token": False, "add_eos_token": False,
                 "tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("name_or_path", "is_local", "backend", "local_files_only"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    (out / "chat_template.jinja").unlink(missing_ok=True)
    path = out / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("_name_or_path", None)
    settings["rope_theta"] = settings["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(settings, indent=2) + "\n")
    for path in out.iterdir():
        path.chmod(0o644)


def train(args):
    """The whole recipe; prints a line of progress now and then."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.resume:
        tokenizer = AutoTokenizer.from_pretrained(args.resume)
        model = LlamaForCausalLM.from_pretrained(args.resume, dtype=torch.float32).train()
    else:
        tokenizer = train_tokenizer(20_000, args.vocab, args.seed + 1)
        model = build_model(tokenizer, args)
    stream = batches(tokenizer, args.seed + 2, args.batch_tokens, args.chat_share)
    print(f"parameters {model.num_parameters()}, vocabulary {len(tokenizer)}", flush=True)
    optimizer = optimizer_for(model, args)
    start, budget, tokens, recent = time.time(), args.minutes * 60, 0, []
    next_export = start + args.export_every * 60
    for step, (ids, labels) in enumerate(stream):
        progress = (time.time() - start) / budget
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, step, progress)
        loss = loss_of(model, ids, labels, args.bf16)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += int((ids != tokenizer.eos_token_id).sum())
        recent.append(loss.item())
        if step % 50 == 0 or progress >= 1:
            seconds = time.time() - start
            print(f"step {step} loss {sum(recent[-50:]) / len(recent[-50:]):.4f} tokens {tokens} "
                  f"seconds {seconds:.0f} tokens/s {tokens / seconds:.0f}", flush=True)
        if progress >= 1 or time.time() > next_export:
            export(model, tokenizer, Path(args.out))
            next_export = time.time() + args.export_every * 60
        if progress >= 1:
            return


def arguments():
    """Command line; the defaults are the first phase of the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--export-every", type=float, default=5, help="minutes")
    parser.add_argument("--resume", help="go on from an earlier export")
    parser.add_argument("--chat-share", type=float, default=0.35)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    train(arguments())
