"""``--model w2s-vllm``: log-likelihoods of a causal model and its adapters on a running vLLM server.

    w2s eval --model w2s-vllm --model_args pretrained=FOLDER,peft=ADAPTER,base_url=http://localhost:8000/v1 --tasks w2s_sst2

`model` is lm_eval's interface; `server` asks the server what it has, loads adapters and tries whether its values are right.
Requests, retries and stored answers are those of `w2s_tasks.models.chat`.
"""
