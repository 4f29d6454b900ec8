"""Score one's own questions with transformers and PEFT, with the confidences of the training run.

    python examples/score_with_transformers.py --adapter ADAPTER --questions FILE.jsonl \\
        [--option-score mean|sum|chars|pmi]

ADAPTER holds adapter_config.json, adapter_model.safetensors and calibration.json, as train.py
writes them. A line of FILE: {"question": "...", "choices": ["...", "..."], "passage": "..."}; the
passage may be absent. --base BASE names the base where it is not where the adapter says. For each
line one JSON object is printed:

    option_probs    softmax over the options' scores; a score is made of the log-probability of the
                    option's text after the prompt, by the rule of the run: per token (mean), in
                    all (sum) or per character (chars); pmi, if you ask for it, subtracts the
                    log-probability of the same text without the question
    tempered_probs  the same with the scores divided by the temperature that was fitted on the run's
                    calibration questions; null if none could be fitted, or for another rule

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
    labels = row.get("labels") or letters
    options = [
        {"letter": letter, "choice": choice, "sentence": sentence(choice), "label": label}
        for letter, choice, label in zip(letters, choices, labels, strict=False)
    ]
    texts = {"passage": (row.get("passage") or "").strip(), "question": row["question"].strip()}
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


def stored_rule(calibration):
    """The rule by which the run scored options; files of older runs name it in another field."""
    if "option_score" in calibration:
        return calibration["option_score"]
    return {"token_mean": "mean"}.get(calibration["normalisation"], calibration["normalisation"])


def option_scores(model, rule, calibration, prompt_ids, completion_ids, completions):
    """The scores of one question's options, float64."""
    logprobs = torch.tensor(option_logprobs(model, prompt_ids, completion_ids), dtype=torch.float64)
    if rule == "mean":
        return logprobs / torch.tensor([len(ids) for ids in completion_ids])
    if rule == "chars":
        return logprobs / torch.tensor([max(len(text.strip()), 1) for text in completions])
    if rule == "pmi":
        prefix = calibration["pmi_prefix_ids"]
        priors = option_logprobs(model, prefix, completion_ids)
        return logprobs - torch.tensor(priors, dtype=torch.float64)
    return logprobs


def probabilities(scores, temperature):
    """Softmax over the options' scores."""
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
    rules = ("mean", "sum", "chars", "pmi")
    parser.add_argument("--option-score", choices=rules, help="absent: the rule of the run")
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

    rule = arguments.option_score or stored_rule(calibration)
    if rule == "pmi" and not calibration.get("pmi_prefix_ids"):
        parser.error("--option-score pmi: calibration.json has no pmi_prefix_ids; train again")
    fitted = rule == stored_rule(calibration)
    temperature = calibration["temperature"]["value"] if fitted else None
    for row in rows:
        prompt, completions = prompt_and_completions(calibration["prompt"], row)
        ids = token_ids(tokenizer, calibration["prefix_ids"], prompt, completions)
        scores = option_scores(model, rule, calibration, *ids, completions)
        probs = probabilities(scores, 1.0)
        tempered = None if temperature is None else probabilities(scores, temperature)
        answer = {
            "question": row["question"],
            "prediction": chosen(row["choices"], probs),
            "option_probs": probs,
            "tempered_probs": tempered,
        }
        print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
