"""Score your own questions on a vLLM server, with the confidences of the training run.

    cogcalib merge --run runs/world-0/cols --out merged/
    vllm serve merged/
    python examples/score_with_vllm.py --calibration merged/calibration.json \\
        --questions FILE.jsonl --model merged/ [--url http://localhost:8000]

A line of FILE: {"question": "...", "choices": ["...", "..."], "passage": "..."}; the passage may be
absent. For each line one JSON object with option_probs, tempered_probs and calibrated_probs is
printed; they mean what they mean in score_with_transformers.py. Needs nothing but Python.

Why not the list of likeliest tokens. The usual way is to generate one token and look the options
up in its top log-probabilities. But a server returns at most --max-logprobs of them (by default
20; OpenAI's API has such a limit, too). An unlikely option is missing there, and counting it as 0
raises the confidence of the others. An option of several tokens is never there. Here each option
is sent as part of the prompt with "echo", and the server returns the log-probability of every token
of the prompt. This is exact for all options, at the cost of one more prompt for each. (Servers that
ignore "echo" are detected and refused.)

What moves the numbers. Calibration was measured on these weights in the dtype of the run. A server
that quantises weights, activations or the KV cache (AWQ, GPTQ, FP8, --kv-cache-dtype fp8) computes
other logits, and its confidences are no longer the measured ones: measure again on labelled
questions, and fit the temperature again, on that server. Sampling parameters do not matter here, as
long as the server reports raw log-probabilities (--logprobs-mode raw_logprobs, vLLM's default).

Why the adapter is merged. vLLM leaves LoRA on lm_head out of the log-probabilities of a prompt,
without a message (https://github.com/vllm-project/vllm/issues/51594, open when this was written),
and this script reads these. So the calibration.json of an unmerged adapter on lm_head is refused.
An adapter without lm_head (--lora.target-modules q_proj,v_proj) can also be served with
--enable-lora.

The check at the start. calibration.json holds one calibration question with the scores of its
options. It is scored first; the script stops if the server's log-probabilities differ from the
stored ones by more than the stored tolerance (nats per token; --tolerance changes it).
"""

import argparse
import json
import math
import sys
import urllib.error
import urllib.request
from pathlib import Path
from string import ascii_uppercase

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


def token_logprobs(url, model, texts, special):
    """For each text its tokens and their log-probabilities (the first token has none).

    special: whether the server puts BOS before a text; that of a chat begins with its own.
    """
    # One token is generated since servers refuse to generate none; it is cut off again.
    body = {"model": model, "prompt": texts, "max_tokens": 1, "echo": True, "logprobs": 1}
    if not special:
        body["add_special_tokens"] = False
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            choices = json.load(response)["choices"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{url}: {error.code}, {error.read().decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"{url}: cannot be reached ({error.reason})") from error
    found = [one["logprobs"] for one in sorted(choices, key=lambda one: one["index"])]
    return [(one["tokens"][:-1], one["token_logprobs"][:-1]) for one in found]


def option_logprobs(url, model, prompt, completions, special):
    """(log-probability of each completion summed over its tokens, number of its tokens)."""
    texts = [prompt, *(prompt + completion for completion in completions)]
    (prompt_tokens, _), *wholes = token_logprobs(url, model, texts, special)
    n = len(prompt_tokens)
    if n == 0:
        raise SystemExit(f"{url}: does not echo the prompt's log-probabilities; vLLM does")
    if any(tokens[:n] != prompt_tokens or len(tokens) == n for tokens, _ in wholes):
        raise SystemExit(f"options cannot be scored after this prompt: {prompt!r}")
    return [sum(values[n:]) for _, values in wholes], [len(tokens) - n for tokens, _ in wholes]


def stored_rule(calibration):
    """The rule by which the run scored options; files of older runs name it in another field."""
    if "option_score" in calibration:
        return calibration["option_score"]
    return {"token_mean": "mean"}.get(calibration["normalisation"], calibration["normalisation"])


def option_scores(rule, logprobs, tokens, completions):
    """Scores by the rule mean (per token), chars (per character) or sum."""
    divisors = {
        "mean": tokens,
        "chars": [max(len(text.strip()), 1) for text in completions],
        "sum": [1] * len(logprobs),
    }[rule]
    return [value / divisor for value, divisor in zip(logprobs, divisors, strict=True)]


def require_merged_head(file, calibration):
    """Refuse an unmerged adapter of which vLLM would not apply all: on lm_head, with DoRA (which it
    does not know), with ranks or alphas by module (which it does not read; lora/peft_helper.py)."""
    adapter = file.parent / "adapter_config.json"
    raw = json.loads(adapter.read_text(encoding="utf-8")) if adapter.is_file() else {}
    touches, merged = calibration.get("adapter_touches_head"), calibration.get("merged")
    if touches is None and raw:  # written before these two fields existed
        touches, merged = "lm_head" in raw["target_modules"], False
    other = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
    unknown = [key for key in (*other, "trainable_token_indices") if raw.get(key)]
    if unknown and not merged:
        raise SystemExit(
            f"{file}: belongs to an unmerged adapter with {unknown[0]}, which vLLM does not apply;"
            " merge it (python -m cogcalib_jax.hf.merge) and give the merged folder's"
            " calibration.json"
        )
    if touches and not merged:
        raise SystemExit(
            f"{file}: belongs to an unmerged adapter on lm_head, which vLLM leaves out of prompt"
            " log-probabilities (vllm#51594); merge it (python -m cogcalib_jax.hf.merge) and"
            " give the merged folder's calibration.json"
        )


def check_probe(url, model, probe, special, tolerance):
    """Ask the stored question, and stop unless the server gives the stored scores."""
    values, lengths = option_logprobs(url, model, probe["prompt"], probe["completions"], special)
    expected = [len(ids) for ids in probe["completion_ids"]]
    if lengths != expected:
        raise SystemExit(
            f"{url}: cuts the options of the stored question into {lengths} tokens; expected"
            f" {expected}. Serve {model} with the tokenizer of the training run"
        )
    differences = [
        abs(value - stored) / length
        for value, stored, length in zip(values, probe["option_logprobs"], lengths, strict=True)
    ]
    allowed = probe["tolerance"] if tolerance is None else tolerance
    if not max(differences) <= allowed:
        raise SystemExit(
            f"{url}: its log-probabilities of the stored question are up to {max(differences):.3g}"
            f" nats a token off; expected at most {allowed:.3g}. Serve the merged weights, not the"
            " base, and without quantisation"
        )
    print(
        f"stored question: at most {max(differences):.3g} nats a token off (allowed {allowed:.3g})",
        file=sys.stderr,
    )


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
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--model", required=True, help="the name under which the server has it")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--tolerance", type=float, help="of the stored question, nats a token")
    arguments = parser.parse_args(argv)
    if not arguments.questions.is_file():
        parser.error(f"--questions {arguments.questions}: no such file")
    rows = read_rows(arguments.questions)

    calibration = json.loads(arguments.calibration.read_text())
    temperature = calibration["temperature"]["value"]
    stored_calibrator(calibration)  # refuses a mixture before the work
    special = calibration["chat_template_sha256"] is None
    require_merged_head(arguments.calibration, calibration)
    if probe := calibration.get("probe"):
        check_probe(arguments.url, arguments.model, probe, special, arguments.tolerance)
    else:
        print(f"{arguments.calibration}: no stored question; nothing is checked", file=sys.stderr)
    for row in rows:
        prompt, completions = prompt_and_completions(calibration["prompt"], row)
        found = option_logprobs(arguments.url, arguments.model, prompt, completions, special)
        scores = option_scores(stored_rule(calibration), *found, completions)
        tempered = None if temperature is None else softmax([s / temperature for s in scores])
        probs = softmax(scores)
        answer = {
            "question": row["question"],
            "prediction": chosen(row["choices"], probs),
            "option_probs": probs,
            "tempered_probs": tempered,
            "calibrated_probs": calibrated(calibration, scores, completions),
        }
        print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
