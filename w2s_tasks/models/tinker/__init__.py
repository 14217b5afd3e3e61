"""``--model w2s-tinker``: a base model of a Tinker service, or one that was trained there, answers any of our tasks.

    w2s eval --model w2s-tinker --model_args model=Qwen/Qwen3-8B,enable_thinking=false --apply_chat_template --tasks w2s_sst2
    w2s eval --model w2s-tinker --model_args model_path=tinker://RUN/sampler_weights/NAME --tasks w2s_sst2

Tinker is Thinking Machines' training service; other servers speak its protocol (`base_url`). `service` reaches one within
deadlines of ours, `model` is lm_eval's interface, `weights` brings trained weights home. Nothing here imports the SDK before
a request is sent.
"""

OPERATIONAL = frozenset(["api_key_env", "num_concurrent", "timeout", "max_cost", "prices", "store"])
"""Arguments that change how answers are fetched, never which: no part of a model's identity."""
