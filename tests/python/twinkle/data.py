"""Data sets and loaders on the server, against the same classes of the package on this side."""

import csv
import json

import requests
from kit import expect, plain, refused
from twinkle.dataset import Dataset as LocalDataset
from twinkle.dataset import DatasetMeta
from twinkle_client.dataloader import DataLoader
from twinkle_client.dataset import Dataset, IterableDataset, IterablePackingDataset, LazyDataset, PackingDataset
from twinkle_client.processor import InputProcessor

QUESTIONS = ["Who are you?", "What is your name?", "Who made you?", "Are you a person?"]


def rows(count: int) -> list[dict]:
    answer = "I am {{NAME}} number "
    return [{"query": QUESTIONS[index % 4], "response": f"{answer}{index}.", "tag": "en"} for index in range(count)]


def write(world, name: str, lines: list[dict]) -> str:
    path = world.folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif name.endswith(".json"):
        path.write_text(json.dumps(lines))
    elif name.endswith(".csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    return str(path)


def prepared(dataset, template_model: str):
    dataset.set_template("Template", model_id=template_model, max_length=512)
    dataset.map("SelfCognitionProcessor", init_args={"model_name": "Twinkle", "model_author": "us"})
    dataset.encode()
    return dataset


def test_every_format_is_read_as_the_package_reads_it(world):
    world.sign_in()
    for name in ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet"):
        path = write(world, name, rows(5))
        there, here = Dataset(DatasetMeta(path)), LocalDataset(DatasetMeta(path))
        expect(len(there) == len(here) == 5, f"{name} has {len(there)} rows, not {len(here)}")
        expect(there[3] == here[3], f"{name}: row 3 is {there[3]}, not {here[3]}")


def test_encoding_is_the_packages_to_the_last_label(world):
    world.sign_in()
    path = write(world, "cognition.jsonl", rows(6))
    there = prepared(Dataset(DatasetMeta(path)), world.model)
    here = prepared(LocalDataset(DatasetMeta(path)), world.model_path)
    expect(len(there) == len(here), f"{len(there)} rows, not {len(here)}")
    for index in range(len(here)):
        row, wanted = there[index], {key: plain(value) for key, value in here[index].items()}
        for key in ("input_ids", "labels", "attention_mask", "position_ids", "length"):
            expect(row.get(key) == wanted[key], f"row {index}: `{key}` is {row.get(key)}, not {wanted[key]}")


def test_slices_mixes_and_instances(world):
    world.sign_in()
    path = write(world, "slices.jsonl", rows(6))
    for data_slice in (range(1, 4), [5, 0, 7]):
        there = Dataset(DatasetMeta(path, data_slice=data_slice))
        here = LocalDataset(DatasetMeta(path, data_slice=data_slice))
        expect([there[index] for index in range(3)] == [here[index] for index in range(3)], f"slice {data_slice}")
    other = write(world, "others.jsonl", [{"query": "Other?", "response": "Yes.", "tag": "en"}] * 3)
    mixed, wanted = Dataset(DatasetMeta(path)), LocalDataset(DatasetMeta(path))
    for dataset in (mixed, wanted):
        dataset.add_dataset(DatasetMeta(other))
        dataset.mix_dataset(interleave=False)
    expect(len(mixed) == len(wanted), f"mixed: {len(mixed)} rows, not {len(wanted)}")
    expect([mixed[index] for index in range(len(wanted))] == [wanted[index] for index in range(len(wanted))], "the mix differs")


def test_a_loader_gives_batches_ends_and_begins_again(world):
    """Eight rows in threes: two batches, then the iterator is exhausted, again and again."""
    world.sign_in()
    dataset = prepared(Dataset(DatasetMeta(write(world, "eight.jsonl", rows(8)))), world.model)
    loader = DataLoader(dataset, batch_size=3)
    expect(len(loader) == 3, f"the length is {len(loader)}")
    for epoch in range(2):
        batches = list(loader)
        expect([len(batch) for batch in batches] in ([3, 3], [3, 3, 2]), f"epoch {epoch}: {[len(batch) for batch in batches]}")
        for _ in range(2):
            try:
                next(loader)
            except StopIteration:
                continue
            raise AssertionError("an exhausted iterator gave a batch")
    expect(batches[0][0]["input_ids"] == dataset[0]["input_ids"], "the first row of the first batch is another one")
    consumed = loader.get_state()["consumed_train_samples"]
    expect(consumed == sum(3 for _ in batches) * 2, f"two epochs consumed {consumed}")


def test_a_loader_goes_on_where_training_stopped(world):
    world.sign_in()
    dataset = prepared(Dataset(DatasetMeta(write(world, "resume.jsonl", rows(12)))), world.model)
    whole = [batch for batch in DataLoader(dataset, batch_size=3)]
    resumed = DataLoader(dataset, batch_size=3)
    resumed.resume_from_checkpoint(6)
    rest = list(resumed)
    texts = [[row["input_ids"] for row in batch] for batch in whole[2:]]
    expect([[row["input_ids"] for row in batch] for batch in rest] == texts, "other batches than those that were left")


def test_batches_train(world):
    world.sign_in()
    dataset = prepared(Dataset(DatasetMeta(write(world, "train.jsonl", rows(8)))), world.model)
    loader = DataLoader(dataset, batch_size=4)
    model = world.trained()
    losses = []
    for _ in range(6):
        for batch in loader:
            losses.append(model.forward_backward(inputs=batch).result["loss"])
            model.clip_grad_and_step()
    expect(losses[-1] < 0.7 * losses[0], f"the loss went from {losses[0]} to {losses[-1]}")


def test_lazy_streaming_and_packed_forms(world):
    world.sign_in()
    path = write(world, "forms.jsonl", rows(6))
    eager = prepared(Dataset(DatasetMeta(path)), world.model)
    lazy = prepared(LazyDataset(DatasetMeta(path)), world.model)
    expect(len(lazy) == 6 and lazy[2]["input_ids"] == eager[2]["input_ids"], "a lazy row is another one")
    raw = Dataset(DatasetMeta(path))
    # Not `list()`, which asks for the length first, and a stream has none.
    streamed = [row for row in IterableDataset(DatasetMeta(path))]  # noqa: C416
    expect(streamed == [raw[index] for index in range(6)], "a stream gives other rows")
    packed = PackingDataset(DatasetMeta(path))
    prepared(packed, world.model)
    packed.pack_dataset()
    tokens = sum(len(eager[index]["input_ids"]) for index in range(6))
    # A packed row is a list of features, or one that holds them all.
    total = 0
    for index in range(len(packed)):
        row = packed[index]
        total += sum(len(part["input_ids"]) for part in (row if isinstance(row, list) else [row]))
    expect(total == tokens and len(packed) < 6, f"{len(packed)} packed rows have {total} tokens, not {tokens}")

    chats = [{"messages": eager[index]["messages"]} for index in range(6)]
    stream = IterablePackingDataset(DatasetMeta(write(world, "chats.jsonl", chats)), packing_interval=6)
    stream.set_template("Template", model_id=world.model, max_length=512)
    stream.pack_dataset()
    parts = [part for row in stream for part in (row if isinstance(row, list) else [row])]
    expect(sum(len(part["input_ids"]) for part in parts) == tokens, "a packed stream has other tokens")


def test_rows_are_written_where_only_their_owner_reads(world):
    world.sign_in()
    dataset = Dataset(DatasetMeta(write(world, "saved.jsonl", rows(4))))
    dataset.save_as("mine.jsonl")
    again = Dataset(DatasetMeta("mine.jsonl"))
    expect(len(again) == 4 and again[1] == dataset[1], "what was written is read otherwise")
    for path in (str(world.folder / "escaped.jsonl"), "../../escaped.jsonl"):
        try:
            dataset.save_as(path)
        except requests.HTTPError as error:
            expect(error.response.status_code in (400, 403, 404), error.response.text)
        expect(not (world.folder / "escaped.jsonl").exists(), "a client chose where the server writes")
    world.sign_in()
    refused(lambda: Dataset(DatasetMeta("mine.jsonl")), 400, 404)


def test_wrong_requests_name_what_is_known(world):
    client = world.sign_in()
    path = write(world, "wrong.jsonl", rows(3))
    dataset = Dataset(DatasetMeta(path))
    refused(lambda: dataset.map("SelfCognitionProcesor"), 400, words=("SelfCognitionProcessor",))
    refused(lambda: dataset.set_template("NoTemplate", model_id=world.model), 400, words=("NoTemplate",))
    refused(lambda: dataset.encode(), 400, words=("template",))
    refused(lambda: dataset[99], 400, 404)
    refused(lambda: Dataset(DatasetMeta("/nowhere/rows.jsonl")), 400, 404, words=("/nowhere/rows.jsonl",))
    refused(lambda: Dataset(DatasetMeta("ms://nobody/nothing")), 400, 404, 502, 503, words=("nobody/nothing",))
    refused(lambda: DataLoader(dataset, batch_size=0), 400, words=("batch_size",))
    headers = {"X-Twinkle-Session-Id": client._session_id}
    body = {"processor_id": f"pid:{'0' * 32}", "function": "__len__"}
    answer = world.post("processor/twinkle/call", body, headers=headers)
    expect(answer.status_code in (400, 404), f"an unknown object is answered {answer.status_code}: {answer.text}")


def test_an_input_processor_pads(world):
    world.sign_in()
    processor = InputProcessor()
    short, long = {"input_ids": [5, 6], "labels": [6, -100]}, {"input_ids": [7, 8, 9], "labels": [8, 9, -100]}
    try:
        result = processor(inputs=[short, long])
    except requests.HTTPError as error:
        raise AssertionError(error.response.text) from error
    batch = result[0] if isinstance(result, list) else result
    expect(batch["input_ids"] == [[5, 6, 0], [7, 8, 9]], f"the padded batch is {batch}")
    expect(batch["labels"] == [[6, -100, -100], [8, 9, -100]], f"the padded batch is {batch}")
