#!/usr/bin/env python3
"""`twinkle_rs.init_tinker_client`: the installed SDK takes any key, `twinkle://` paths, and Twinkle's variables."""

import os
import sys
from pathlib import Path

import blackbox
from blackbox import expect

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python/src"))
KEY = "a-key-of-any-form"


def main():
    arguments = blackbox.parser(__doc__).parse_args()
    blackbox.watchdog(arguments.limit)
    from twinkle_rs import init_tinker_client

    for _ in range(2):
        init_tinker_client()
    import tinker
    from tinker import types

    os.environ.update(API_KEY=KEY, TWINKLE_SERVER_URL=f"{arguments.base_url}/api/v1")
    service = tinker.ServiceClient()
    run = blackbox.create_run(service, arguments.model)
    data = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=3)]
    first, _ = blackbox.train(run, data, 1e-2)
    last, _ = blackbox.train(run, data, 1e-2)
    expect(last < first, f"the loss went from {first} to {last}")
    state = run.save_state("prepared").result(timeout=blackbox.TIMEOUT).path.replace("tinker://", "twinkle://")
    sampler = run.save_weights_for_sampler("prepared").result(timeout=blackbox.TIMEOUT).path

    # The key named in the call, and paths with Twinkle's scheme.
    service = tinker.ServiceClient(base_url=arguments.base_url, api_key=KEY)
    again = blackbox.ready(service.create_training_client_from_state(state))
    logprobs = [blackbox.forward(client, data) for client in (run, again)]
    expect(logprobs[0] == logprobs[1], "the restored run is another one")
    sampling = blackbox.ready(service.create_sampling_client(model_path=sampler.replace("tinker://", "twinkle://")))
    prompt, parameters = types.ModelInput.from_ints([5, 6, 7]), types.SamplingParams(max_tokens=3, temperature=0.0)
    sampled = sampling.sample(prompt=prompt, num_samples=1, sampling_params=parameters).result(timeout=blackbox.TIMEOUT)
    expect(len(sampled.sequences[0].tokens) == 3, f"the sample is {sampled}")


if __name__ == "__main__":
    blackbox.run(main)
