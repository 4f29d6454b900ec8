"""Score your own questions with transformers and PEFT, with the confidences of the training run.

    python examples/score_with_transformers.py --adapter ADAPTER --questions FILE.jsonl \\
        [--option-score mean|sum|chars|pmi]

ADAPTER holds adapter_config.json, adapter_model.safetensors and calibration.json, as train.py
writes them. A line of FILE: {"question": "...", "choices": ["...", "..."], "passage": "..."}; the
passage may be absent. --base BASE names the base if it is not where the adapter says. For each
line one JSON object is printed:

    option_probs    softmax over the option scores; a score is the log-probability of the option's
                    text after the prompt, by the rule of the run: per token (mean), summed
                    (sum) or per character (chars); pmi, if you ask for it, subtracts the
                    log-probability of the same text without the question
    tempered_probs  the same with the scores divided by the temperature that was fitted on the run's
                    calibration questions; null if none could be fitted, or for another rule
    calibrated_probs
                    by the calibrator of the run: tempered_probs, unless --evaluation.calibrator
                    named another one. It may be vector, platt or isotonic; a mixture is refused,
                    because it needs the scores of a second adapter. null as above

Prompts are scored whole. (A run cuts the middle out of a passage that makes a prompt longer than
calibration.json's max_length.) Needs torch, transformers and peft alone.
"""

import argparse
import json
import math
from pathlib import Path
from string import ascii_uppercase

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = ("temperature", "daca", "vector", "platt", "isotonic")


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
    if rule == "sum":
        return logprobs
    raise SystemExit(f"option_score is {rule}; expected mean, sum, chars or pmi")


def calibrated(calibration, scores, completions):
    """Probabilities by the calibrator that calibration.json stores; None if it stores none."""
    stored = stored_calibrator(calibration)
    if stored is None:
        return None
    if stored["calibrator"] in ("temperature", "daca"):
        return softmax([score / stored["temperature_"] for score in scores])
    highest = max(scores)
    total = highest + math.log(sum(math.exp(score - highest) for score in scores))
    logs = [score - total for score in scores]
    if stored["calibrator"] == "vector":
        if completions != calibration["calibrator_options"]:
            raise SystemExit(
                f"calibrator is vector, fitted on the options {calibration['calibrator_options']};"
                f" expected the same, and a question has {completions}. Use another calibrator"
            )
        parts = zip(stored["scale_"], logs, stored["bias_"], strict=True)
        return softmax([scale * log + bias for scale, log, bias in parts])
    if len(scores) == 1:
        return [1.0]
    # platt and isotonic map the likeliest option; the others share the rest as before.
    top = logs.index(max(logs))
    mapped = {"platt": platt, "isotonic": isotonic}[stored["calibrator"]](stored, logs[top])
    others = softmax([-math.inf if i == top else score for i, score in enumerate(scores)])
    return [mapped if i == top else (1 - mapped) * share for i, share in enumerate(others)]


def stored_calibrator(calibration):
    """The stored calibrator, a temperature alone in files of earlier releases; None if none."""
    if "calibrator" in calibration:
        stored = calibration["calibrator"]
    else:
        value = calibration["temperature"]["value"]
        stored = value and {"calibrator": "temperature", "temperature_": value}
    if stored is not None and stored["calibrator"] not in KINDS:
        raise SystemExit(
            f"calibrator is {stored['calibrator']}; expected {', '.join(KINDS)}: a mixture needs"
            " the start's adapter, too. Use eval.py, or --evaluation.calibrator temperature"
        )
    return stored


def platt(stored, log):
    """sigmoid(slope x log-odds + intercept) of a log-probability."""
    log = min(log, -1e-7)
    score = stored["slope_"] * (log - math.log(-math.expm1(log))) + stored["intercept_"]
    return 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))


def isotonic(stored, log):
    """The stored line between knots at a probability; constant beyond them."""
    x, knots, values = math.exp(log), stored["knots_"], stored["values_"]
    if x <= knots[0] or x >= knots[-1]:
        return values[0] if x <= knots[0] else values[-1]
    i = next(i for i, knot in enumerate(knots) if knot > x)
    part = (x - knots[i - 1]) / (knots[i] - knots[i - 1])
    return values[i - 1] + part * (values[i] - values[i - 1])


def softmax(scores):
    """Probabilities of scores."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


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
    stored_calibrator(calibration)  # refuses a mixture before the work
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
        scores = option_scores(model, rule, calibration, *ids, completions).tolist()
        probs = softmax(scores)
        tempered = None if temperature is None else softmax([s / temperature for s in scores])
        answer = {
            "question": row["question"],
            "prediction": chosen(row["choices"], probs),
            "option_probs": probs,
            "tempered_probs": tempered,
            "calibrated_probs": calibrated(calibration, scores, completions) if fitted else None,
        }
        print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
