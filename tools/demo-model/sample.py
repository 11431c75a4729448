"""Print samples of an exported demo model and its loss on held-out documents.

    python sample.py ../../crates/braidinfer-cli/demo-model
"""

import argparse
import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from train import encode, loss_of, make_document, pad

HELD_OUT_SEED = 987_654_321  # training draws from other seeds
PROMPTS = ["Once upon a time", "Once upon a time there was a little owl", "Tom had a", "The dragon",
           "In a small village", "One day", "Long ago", ""]
CHATS = [
    ["Tell me a story about a fox."],
    ["Write a story about a girl named Lily who wants a kite."],
    ["can you tell me a tale about the sea"],
    ["Hello", "Yes please"],
    ["Who are you?"],
    ["What is the capital of France?"],
    ["Tell me a story about a robot.", "Who was the story about?", "Thank you!"],
]


def held_out_loss(model, tokenizer, documents=200):
    """Mean loss per trained-on token over documents the model has not seen, and their number."""
    rng = random.Random(HELD_OUT_SEED)
    rows = encode(tokenizer, [make_document(rng) for _ in range(documents)], rng)
    total = count = 0
    with torch.no_grad():
        for row in rows:
            ids, labels = pad([row], tokenizer.eos_token_id)
            trained = int((labels[:, 1:] != -100).sum())
            total += loss_of(model, ids, labels).item() * trained
            count += trained
    return total / count, count


def generate(model, tokenizer, ids, seed):
    """Continue token ids: greedily for seed 0, else sampled as generation_config.json says."""
    torch.manual_seed(seed)
    ids = torch.tensor([ids or [tokenizer.bos_token_id]])
    choice = {"do_sample": True} if seed else {"do_sample": False, "temperature": None, "top_p": None}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=300, **choice)
    new = out[0, ids.shape[1]:].tolist()
    ended = new[-1] in model.generation_config.eos_token_id
    return tokenizer.decode(new, skip_special_tokens=True), ended


def print_plain(model, tokenizer, seeds):
    """Continue the beginnings of stories."""
    for prompt in PROMPTS:
        for seed in seeds:
            text, ended = generate(model, tokenizer, tokenizer(prompt).input_ids, seed)
            print(f"[seed {seed}{'' if ended else ', NOT ENDED'}] {prompt}|{text}\n")


def print_chats(model, tokenizer, seeds):
    """Play the user's side of a few chats."""
    for questions in CHATS:
        for seed in seeds:
            messages = []
            for question in questions:
                messages.append({"role": "user", "content": question})
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
                text, ended = generate(model, tokenizer, ids, seed)
                messages.append({"role": "assistant", "content": text})
                print(f"[seed {seed}{'' if ended else ', NOT ENDED'}] {question}\n  -> {text}")
            print()


def main():
    """Load the export and print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="0 is greedy")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    loss, count = held_out_loss(model, tokenizer)
    print(f"parameters {model.num_parameters()}, held-out loss {loss:.4f} over {count} tokens\n")
    print_plain(model, tokenizer, args.seeds)
    print_chats(model, tokenizer, args.seeds)


if __name__ == "__main__":
    main()
