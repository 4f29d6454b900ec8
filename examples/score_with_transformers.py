"""Score one's own questions with transformers and PEFT, with the confidences of the training run.

    python examples/score_with_transformers.py --adapter ADAPTER --questions FILE.jsonl

ADAPTER holds adapter_config.json, adapter_model.safetensors and calibration.json, as train.py
writes them. A line of FILE: {"question": "...", "choices": ["...", "..."], "passage": "..."}; the
passage may be absent. --base BASE names the base where it is not where the adapter says. For each
line one JSON object is printed:

    option_probs    softmax over the options' scores; a score is the log-probability of the option's
                    text after the prompt (its mean per token where the run normalised so)
    tempered_probs  the same with the scores divided by the temperature that was fitted on the run's
                    calibration questions; null where none could be fitted

Prompts are scored whole. (A run cuts the middle out of a passage that makes a prompt longer than
calibration.json's max_length.) Needs torch, transformers and peft alone.
"""

import argparse
import json
from pathlib import Path
from string import ascii_uppercase

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def prompt_and_completions(template, row):
    """The text before the answer, and the text of each option after it."""
    choices = [text.strip() for text in row["choices"]]
    letters = ascii_uppercase.ljust(len(choices))
    options = [
        {"letter": letter, "choice": choice, "sentence": sentence(choice), "label": label}
        for letter, choice, label in zip(letters, choices, row.get("labels", letters), strict=False)
    ]
    texts = {"passage": row.get("passage", "").strip(), "question": row["question"].strip()}
    prompt = template["start"]
    if texts["passage"]:
        prompt += template["passage"].format(**texts)
    prompt += template["question"].format(**texts)
    prompt += "".join(for_each(template["option"], options)) + template["end"]
    # A list is of the answers themselves; some protocols score more of them than there are options.
    answers = template["completion"]
    return prompt, for_each(answers, options) if isinstance(answers, str) else answers


def for_each(piece, options):
    """The text of each option: of one piece for all, or of a piece of its own."""
    pieces = [piece] * len(options) if isinstance(piece, str) else piece
    return [text.format(**one) for text, one in zip(pieces, options, strict=False)]


def sentence(text):
    """With a capital first letter and a full stop."""
    text = text if text.endswith(".") else text + "."
    return text[0].upper() + text[1:]


def token_ids(tokenizer, prefix_ids, prompt, completions):
    """Ids of the prompt, and of each completion as it follows the prompt."""

    def encode(text):
        return prefix_ids + tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt_ids = encode(prompt)
    wholes = [encode(prompt + completion) for completion in completions]
    if any(whole[: len(prompt_ids)] != prompt_ids for whole in wholes):
        raise SystemExit(f"options cannot be scored after this prompt: {prompt!r}")
    return prompt_ids, [whole[len(prompt_ids) :] for whole in wholes]


@torch.no_grad()
def option_logprobs(model, prompt_ids, completion_ids):
    """Log-probability of each completion, summed over its tokens."""
    rows = [prompt_ids + ids for ids in completion_ids]
    length = max(map(len, rows))
    # Filled up on the right: a causal model's real tokens never see what follows them.
    inputs = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    logits = model(inputs, attention_mask=mask.to(model.device)).logits.float()
    logprobs = torch.log_softmax(logits, -1).cpu()
    start = len(prompt_ids) - 1
    return [
        sum(logprobs[row, start + i, token].item() for i, token in enumerate(ids))
        for row, ids in enumerate(completion_ids)
    ]


def probabilities(logprobs, lengths, normalisation, temperature):
    """Softmax over the options' scores."""
    scores = torch.tensor(logprobs, dtype=torch.float64)
    if normalisation == "token_mean":
        scores = scores / torch.tensor(lengths)
    return torch.softmax(scores / temperature, -1).tolist()


def chosen(choices, probs):
    """The likeliest option; None where that is an answer which belongs to no option."""
    return dict(enumerate(choices)).get(probs.index(max(probs)))


def read_rows(path):
    """A row a line, ended by "\\n" alone: JSON text may hold U+2028, where splitlines cuts."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", required=True, type=Path)
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--base", help="Hub id or folder; absent: what the adapter names")
    arguments = parser.parse_args(argv)
    if not arguments.questions.is_file():
        parser.error(f"--questions {arguments.questions}: no such file")
    rows = read_rows(arguments.questions)

    calibration = json.loads((arguments.adapter / "calibration.json").read_text())
    adapter = json.loads((arguments.adapter / "adapter_config.json").read_text())
    base = arguments.base or adapter["base_model_name_or_path"]
    # An adapter may bring a tokenizer of its own, with other special tokens around a text.
    own = (arguments.adapter / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(arguments.adapter if own else base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").to(device)
    model = PeftModel.from_pretrained(model, arguments.adapter).eval()

    temperature = calibration["temperature"]["value"]
    for row in rows:
        prompt, completions = prompt_and_completions(calibration["prompt"], row)
        ids = token_ids(tokenizer, calibration["prefix_ids"], prompt, completions)
        logprobs = option_logprobs(model, *ids)
        rule = ([len(one) for one in ids[1]], calibration["normalisation"])
        probs = probabilities(logprobs, *rule, 1.0)
        tempered = None if temperature is None else probabilities(logprobs, *rule, temperature)
        answer = {
            "question": row["question"],
            "prediction": chosen(row["choices"], probs),
            "option_probs": probs,
            "tempered_probs": tempered,
        }
        print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
