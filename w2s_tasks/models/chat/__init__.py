"""``--model w2s-chat``: a model behind an OpenAI-compatible HTTP endpoint answers any of our tasks.

    w2s eval --model w2s-chat --model_args model=gpt-4o-mini --apply_chat_template --tasks w2s_sst2,w2s_ethics_all
    w2s eval --model w2s-chat --model_args model=m,base_url=http://localhost:8000/v1 --apply_chat_template --tasks w2s_sst2

`model` is lm_eval's interface; `choices` scores multiple choice from one answer's log-probabilities; `wire` writes requests
and reads answers; `transport` sends many at once; `batch` sends them through the Batch API; `store` keeps every answer;
`client` opens the SDK. Nothing here imports the SDK before a request is sent.
"""

OPERATIONAL = frozenset(
    ["api_key_env", "num_concurrent", "max_retries", "backoff", "timeout", "max_cost", "prices", "batch", "store"]
)
"""Arguments that change how answers are fetched, never which: no part of a model's identity."""
