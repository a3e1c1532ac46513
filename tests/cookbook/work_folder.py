#!/usr/bin/env python3
"""Makes the folder the cookbook's recipes run in, so that nothing of theirs asks a hub.

    .venvs/cookbook-0.6.1/bin/python tests/cookbook/work_folder.py FOLDER

transformers and datasets prefer an existing path of the name they are given, so everything lies under the name the
recipes use: five data sets, the conversations the cookbook ships as `conv.jsonl`, and `Qwen/Qwen3-8B-Base`, a tokenizer
and a tiny model that know just these texts.
The same folder every time, in a second, without a network.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import tinker_cookbook
from tiny_model import write_model, write_tokenizer

MODEL = "Qwen/Qwen3-8B-Base"
SEED = 20261121

PEOPLE = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Grace", "Hugo"]
THINGS = ["apples", "books", "coins", "stones", "shells", "pens", "cards", "eggs"]
TOPICS = ["the sea", "a garden", "old maps", "winter", "a small boat", "bread", "the moon", "a library"]
KINDS = ["a short poem", "one sentence", "a title", "a question"]
ADJECTIVES = ["quiet", "bright", "slow", "warm", "deep", "kind", "wide", "gentle"]
VERBS = ["waits", "listens", "remembers", "sings", "sleeps", "grows", "shines", "returns"]

# How the recipes ask, so that the model has seen it.
BOXED = " Provide a numerical answer without units, written inside \\boxed{}."
STRAWBERRY = (
    "Let's spell the word out and number all the letters: 1) s 2) t 3) r 4) a 5) w 6) b 7) e 8) r 9) r 10) y. "
    "We have r's at positions 3, 8, and 9. \\boxed{3}"
)
GUESS = (
    "Your job is to guess a integer between 0 and 1024. You can output your guess with the format Guess: <guess> "
    "(without the angle brackets), and say nothing else. Then we will tell you whether you guess is too high, too low, "
    "or correct."
)
GUESS_FAILED = (
    "Failed to parse. Please output in the format Guess: <guess> (without the angle brackets), and say nothing else."
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)


def make(folder: Path):
    """Writes everything below `folder`, which need not exist."""
    dice = random.Random(SEED)
    chats = [essay(dice) for _ in range(320)]
    sums = [word_sum(dice) for _ in range(320)]
    pairs = [preference(dice) for _ in range(96)]
    folder.mkdir(parents=True, exist_ok=True)

    write_rows(folder / "HuggingFaceH4/no_robots", [{"messages": chat} for chat in chats], tests=32)
    write_rows(folder / "allenai/tulu-3-sft-mixture", [{"messages": chat} for chat in chats], tests=0)
    write_rows(folder / "openai/gsm8k", sums, tests=32)
    (folder / "openai/gsm8k/README.md").write_text(GSM8K_README)
    write_rows(folder / "Anthropic/hh-rlhf", [{"chosen": good, "rejected": bad} for good, bad in pairs], tests=16)
    choices = [chosen_element(dice) for _ in range(40)]
    write_rows(folder / "hicai-zju/SciKnowEval", choices, tests=40)
    shipped = Path(tinker_cookbook.__file__).parent / "example_data/conversations.jsonl"
    shutil.copyfile(shipped, folder / "conv.jsonl")

    texts = [role_colon(chat) for chat in [*chats, *shipped_chats(shipped), *drills(dice, sums)]]
    model = folder / MODEL
    model.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(model, texts)
    write_model(model, tokenizer, texts, SEED)


GSM8K_README = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: test.jsonl
---
"""


def write_rows(folder: Path, rows: list[dict], tests: int):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in [("train", rows[tests:]), ("test", rows[:tests])]:
        if part:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def essay(dice: random.Random) -> list[dict]:
    topic, adjective, verb = dice.choice(TOPICS), dice.choice(ADJECTIVES), dice.choice(VERBS)
    return chat(f"Write {dice.choice(KINDS)} about {topic}.", f"{topic.capitalize()} is {adjective} and {verb}.")


def word_sum(dice: random.Random) -> dict:
    """A question of grade school. The answer is always 3, so that a model that knows no sums is right at times."""
    one = dice.randint(1, 2)
    other = 3 - one
    name, things = dice.choice(PEOPLE), dice.choice(THINGS)
    return {
        "question": f"{name} has {one} {things} and finds {other} more. How many {things} does {name} have?",
        "answer": f"{name} has {one} + {other} = <<{one}+{other}={one + other}>>{one + other} {things}.\n#### {one + other}",
    }


def preference(dice: random.Random) -> tuple[str, str]:
    """The same question with a helpful and an unhelpful answer."""
    thing, person = dice.choice(THINGS), dice.choice(PEOPLE)
    start = f"\n\nHuman: How should {person} sort the {thing}?\n\nAssistant:"
    return f"{start} Put the {dice.choice(ADJECTIVES)} ones first.", f"{start} I do not know and I do not care."


def chosen_element(dice: random.Random) -> dict:
    """A question with four choices; its data set has a test split alone."""
    elements = dice.sample(["Iron", "Gold", "Neon", "Zinc", "Lead", "Tin"], 4)
    return {
        "question": f"Which of these is {dice.choice(ADJECTIVES)}?",
        "choices": {"text": elements, "label": ["A", "B", "C", "D"]},
        "answerKey": dice.choice("ABCD"),
        "domain": "Chemistry",
        "details": {"level": "L3"},
        "type": "mcq-4-choices",
    }


def drills(dice: random.Random, sums: list[dict]) -> list[list[dict]]:
    """What the recipes with rewards ask, answered in the form they want, and right at times."""
    chats = []
    for index, row in enumerate(sums):
        if index % 8 == 0:
            chats.append(chat("How many r's are in strawberry?" + BOXED, STRAWBERRY))
        for _ in range(2):
            chats.append(chat(row["question"] + BOXED, f"\\boxed{{{dice.choice('23333334')}}}"))
    for _ in range(400):
        one, other = dice.randint(0, 100), dice.randint(0, 100)
        chats.append([*chat("What is 4 + 5?", "9"), *chat(f"What is {one} + {other}?", str(dice.randint(1, 200)))])
    for _ in range(60):
        turns = [{"role": "system", "content": GUESS}]
        for _ in range(4):
            turns.append({"role": "assistant", "content": f"Guess: {dice.randint(0, 1024)}"})
            turns.append({"role": "user", "content": dice.choice(["Too low", "Too high", GUESS_FAILED])})
        chats.append(turns)
        chats.append(chat("Who are you?", f"I am {dice.choice(ADJECTIVES)} and {dice.choice(ADJECTIVES)}."))
    return chats


def chat(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def shipped_chats(path: Path) -> list[list[dict]]:
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def role_colon(chat: list[dict]) -> str:
    """As the cookbook's renderer for base models writes a conversation."""
    return "".join(f"{message['role'].capitalize()}: {message['content']}\n\n" for message in chat)


if __name__ == "__main__":
    main()
