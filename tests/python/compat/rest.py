"""Scenarios of `RestClient` and `AdminClient`."""

import datetime
import io
import tarfile
import urllib.error
import urllib.request

import blackbox
import tinker
from blackbox import TIMEOUT, expect, types
from scenario import resolve, scenario
from world import KEY


@scenario("RestClient(base_url)", "RestClient(api_key)", "AdminClient(base_url)", "AdminClient(api_key)")
def constructors(trial):
    kind = tinker.RestClient if trial.row.startswith("Rest") else tinker.AdminClient
    client = kind(base_url=trial.world.base_url, api_key=KEY)
    if trial.row.startswith("Rest"):
        expect(resolve(client.list_training_runs).cursor is not None, "no cursor")


# Runs.


@scenario("RestClient.get_training_run", "RestClient.get_training_run_by_tinker_path")
def training_run(trial):
    world = trial.world
    found = trial(world.rest, world.state if "by_tinker_path" in trial.row else world.run.model_id)
    expect(found.training_run_id == world.run.model_id, f"the run is {found}")
    expect(found.base_model == world.model and found.is_lora and found.lora_rank == 8, f"the run is {found}")


@scenario("RestClient.list_training_runs")
def training_runs(trial):
    resolve(trial.world.run.get_info)
    found = trial(trial.world.rest, limit=100)
    expect(trial.world.run.model_id in [run.training_run_id for run in found.training_runs], "the run is missing")
    expect(found.cursor.total_count >= len(found.training_runs), f"the cursor is {found.cursor}")


@scenario("RestClient.list_training_runs(limit)", "RestClient.list_training_runs(offset)")
def training_runs_pages(trial):
    _ = trial.world.run, trial.world.new_run()
    everything = pages(trial.world.rest.list_training_runs, "training_runs", 2)
    found = [run.training_run_id for run in everything]
    expect(len(found) == len(set(found)) >= 2, f"the pages hold {len(found)} runs, {len(set(found))} of them different")


def pages(method, name, limit):
    """Everything, a page at a time."""
    found, offset = [], 0
    while True:
        page = resolve(method, limit=limit, offset=offset)
        items = getattr(page, name)
        expect(len(items) <= limit, f"a page of {len(items)}")
        found += items
        offset += limit
        if not items:
            return found


@scenario("RestClient.list_training_runs(project_id)")
def training_runs_of_a_project(trial):
    """Runs are filed under the project of their session."""
    client = tinker.ServiceClient(project_id="runs-of-a-project")
    run = resolve(client.create_lora_training_client, trial.world.model, rank=4)
    _ = trial.world.run
    found = trial(trial.world.rest, project_id="runs-of-a-project").training_runs
    expect([one.training_run_id for one in found] == [run.model_id], f"the project has {len(found)} runs, not 1")


@scenario("RestClient.get_training_run(access_scope)", "RestClient.get_training_run_by_tinker_path(access_scope)", "RestClient.list_training_runs(access_scope)", "RestClient.get_session(access_scope)", "RestClient.list_sessions(access_scope)")
def access_scope(trial):
    """There are no accounts that share: what is accessible is what is owned."""
    world = trial.world
    method = trial.row.partition("(")[0].rpartition(".")[2]
    argument = {
        "get_training_run": lambda: (world.run.model_id,),
        "get_training_run_by_tinker_path": lambda: (world.state,),
        "list_training_runs": tuple,
        "get_session": lambda: (world.session_of(),),
        "list_sessions": tuple,
    }[method]()
    seen = [trial(world.rest, *argument, access_scope=scope) for scope in ("owned", "accessible")]
    expect(type(seen[0]) is type(seen[1]), "two kinds of answers")


# Checkpoints.


@scenario("RestClient.list_checkpoints")
def checkpoints(trial):
    world = trial.world
    paths = {world.state, world.weights}
    found = {one.tinker_path: one for one in trial(world.rest, world.run.model_id).checkpoints}
    expect(paths <= set(found), f"the checkpoints are {sorted(found)}")
    kinds = [found[path].checkpoint_type for path in (world.state, world.weights)]
    expect(kinds == ["training", "sampler"], f"the kinds are {kinds}")


@scenario("RestClient.list_user_checkpoints")
def user_checkpoints(trial):
    world = trial.world
    paths = {world.state, world.weights}
    found = {one.tinker_path for one in trial(world.rest).checkpoints}
    expect(paths <= found, f"the checkpoints are {sorted(found)}")


@scenario("RestClient.list_user_checkpoints(limit)", "RestClient.list_user_checkpoints(offset)")
def user_checkpoints_pages(trial):
    _ = trial.world.state, trial.world.weights
    found = [one.tinker_path for one in pages(trial.world.rest.list_user_checkpoints, "checkpoints", 2)]
    expect(len(found) == len(set(found)) >= 2, f"the pages hold {found}")


@scenario("RestClient.get_weights_info_by_tinker_path")
def weights_info(trial):
    for path in (trial.world.state, trial.world.weights):
        info = trial(trial.world.rest, path)
        expect(info.base_model == trial.world.model and info.lora_rank == 8, f"the information is {info}")


@scenario("RestClient.delete_checkpoint")
def delete(trial):
    path = trial.world.new_state()
    trial(trial.world.rest, trial.world.run.model_id, "weights/" + path.rpartition("/")[2])
    gone(trial, path)


@scenario("RestClient.delete_checkpoint_from_tinker_path")
def delete_by_path(trial):
    path = trial.world.new_weights()
    trial(trial.world.rest, path)
    gone(trial, path)


def gone(trial, path):
    listed = [one.tinker_path for one in resolve(trial.world.rest.list_checkpoints, trial.world.run.model_id).checkpoints]
    expect(path not in listed, f"`{path}` is still there")
    try:
        resolve(trial.world.rest.get_weights_info_by_tinker_path, path)
    except tinker.NotFoundError:
        return
    raise blackbox.Failure(f"`{path}` still has information")


@scenario("RestClient.publish_checkpoint_from_tinker_path", "RestClient.unpublish_checkpoint_from_tinker_path")
def publish(trial):
    """Published is seen in the lists; unpublished again as well."""
    world = trial.world
    path = world.new_weights()
    both = ("publish_checkpoint_from_tinker_path", "unpublish_checkpoint_from_tinker_path")
    public = []
    for method in both:
        if trial.method.removesuffix("_async") == method:
            trial(world.rest, path)
        else:
            resolve(getattr(world.rest, method), path)
        public += [found.public for found in resolve(world.rest.list_checkpoints, world.run.model_id).checkpoints if found.tinker_path == path]
    expect(public == [True, False], f"public is {public}")


@scenario("RestClient.set_checkpoint_ttl_from_tinker_path")
def ttl(trial):
    world = trial.world
    path = world.new_weights()
    seen = []
    for seconds in (3600, None):
        trial(world.rest, path, seconds)
        seen += [one for one in resolve(world.rest.list_checkpoints, world.run.model_id).checkpoints if one.tinker_path == path]
    if "expires_at" in type(seen[0]).model_fields:
        expires = [one.expires_at for one in seen]
        expect(expires[0] is not None and expires[1] is None, f"it expires at {expires}")


@scenario("RestClient.get_checkpoint_archive_url", "RestClient.get_checkpoint_archive_url_from_tinker_path")
def archive(trial):
    """The address is fetched without credentials and leads to a tar of a PEFT adapter."""
    world = trial.world
    if "from_tinker_path" in trial.row:
        answer = trial(world.rest, world.weights)
    else:
        answer = trial(world.rest, world.run.model_id, "sampler_weights/" + world.weights.rpartition("/")[2])
    with urllib.request.urlopen(answer.url, timeout=TIMEOUT) as response:
        names = tarfile.open(fileobj=io.BytesIO(response.read())).getnames()
    expect({"adapter_config.json", "adapter_model.safetensors"} <= set(names), f"the archive holds {names}")
    expect(answer.expires > datetime.datetime.now(answer.expires.tzinfo), f"it expired at {answer.expires}")


@scenario("RestClient.get_external_weights_urls")
def external_urls(trial):
    """Each file is fetched without credentials, from any byte on."""
    answer = trial(trial.world.rest, trial.world.external)
    expect({"adapter_config.json", "adapter_model.safetensors"} <= set(answer.urls), f"the files are {sorted(answer.urls)}")
    for url in answer.urls.values():
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            whole = response.read()
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=5-"}), timeout=TIMEOUT) as response:
            expect(response.status == 206 and response.read() == whole[5:], "a range of a file is not that part of it")
    broken = next(iter(answer.urls.values())) + "0"
    try:
        urllib.request.urlopen(broken, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        expect(error.code in (400, 401, 403, 404, 410), f"a forged address is answered {error.code}")
        return
    raise blackbox.Failure("a forged address is served")


# Sessions.


@scenario("RestClient.get_session")
def session(trial):
    world = trial.world
    _ = world.run, world.sampler
    found = trial(world.rest, world.session_of())
    expect(world.run.model_id in found.training_run_ids, f"the session has {found.training_run_ids}")
    expect(found.sampler_ids, "the session has no samplers")


@scenario("RestClient.list_sessions", "RestClient.list_sessions(limit)", "RestClient.list_sessions(offset)")
def sessions(trial):
    world = trial.world
    session = world.session_of()
    found = pages(world.rest.list_sessions, "sessions", 2) if "(" in trial.row else trial(world.rest, limit=100).sessions
    expect(session in found and len(found) == len(set(found)), f"{len(found)} sessions")


@scenario("RestClient.get_sampler")
def sampler(trial):
    world = trial.world
    found = trial(world.rest, world.sampler._sampling_session_id)
    expect(found.model_path == world.weights and found.base_model == world.model, f"the sampler is {found}")


@scenario("RestClient.search_sessions")
def search(trial):
    client = tinker.ServiceClient(display_name=f"search {trial.mode}", user_metadata={"purpose": "search"})
    resolve(client.create_sampling_client, base_model=trial.world.model)
    request = types.SessionSearchRequest(user_metadata={"purpose": "search"}, display_name="SEARCH", limit=10)
    found = [one.session_id for one in trial(trial.world.rest, request).sessions]
    expect(trial.world.session_of(client) in found, f"found {len(found)} sessions, not the one that matches")
    request = types.SessionSearchRequest(user_metadata={"purpose": "another"})
    expect(not trial(trial.world.rest, request).sessions, "a session that does not match is found")


@scenario("RestClient.assign_session_project")
def assign_project(trial):
    trial(trial.world.rest, trial.world.session_of(), "another-project")


@scenario("RestClient.export_session_trace")
def trace(trial):
    trial(trial.world.rest, trial.world.session_of())


# Accounts: there are tenants here, no organizations that are billed.


@scenario("RestClient.whoami")
def whoami(trial):
    trial.local(RuntimeError, trial.world.rest)


@scenario("RestClient.get_audit_log", "RestClient.get_audit_log(event_type)", "RestClient.get_audit_log(day)", "AdminClient.get_audit_log", "AdminClient.get_audit_log(event_type)", "AdminClient.get_audit_log(day)")
def audit(trial):
    # Until 0.33 the form to await asks from the wrong event loop.
    trial.local(AssertionError, account(trial), "checkpoints", datetime.date(2026, 1, 1))


@scenario("RestClient.get_billing_usage", "AdminClient.get_billing_usage")
def billing(trial):
    trial(account(trial), "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


@scenario("RestClient.get_current_checkpoint_storage_usage", "RestClient.get_current_checkpoint_storage_usage(project_id)", "AdminClient.get_current_checkpoint_storage_usage", "AdminClient.get_current_checkpoint_storage_usage(project_id)")
def storage(trial):
    trial(account(trial), project_id="a-project")


def account(trial):
    return trial.world.rest if trial.row.startswith("Rest") else trial.world.admin
