"""Score and generate with the fewest tokens: used by evaluation and, with gradients, by training.

A request is (context tokens, continuation tokens), as lm_eval encodes it. Five ideas save work, all of them exact:

1. Requests that need the same forward pass (one context, one-token choices) share it.
2. What is left forms a **prefix tree**: few-shot examples or an instruction at the root, documents below, choices as leaves.
   A piece of the tree is written depth first into one row, a **pack**; every token attends to its ancestors only and keeps
   its own position id. Every shared token runs once, nothing is padded.
3. A beginning that many packs share, the **trunk**, runs once; its keys and values are kept, never copied.
4. The vocabulary is projected only at the positions that score a token.
5. Attention is computed only between tokens that see each other: **branch by branch** on a CPU, by blocks on a GPU.

`tree` holds the layout, `plan` decides what is packed, `budget` how much at once, `masks` who sees whom; `cuts`, `attend`
and `branches` attend branch by branch; `forward` runs the model; `trial`, `witness` and `padding` find out whose numbers
stay exact, `regimes` which texts may stand in one pass; `scoring` and `decoding` are the entrances. Where a dense mask is
needed and passes share too little, or where a model can't be packed, they are batched by length instead: right padding under
causal attention changes nothing before it. Where it does all the same, rows are run one at a time.
"""

from w2s_tasks.packing.decoding import generate
from w2s_tasks.packing.forward import Scores
from w2s_tasks.packing.plan import Plan, make_plan
from w2s_tasks.packing.scoring import cut_rows, score
from w2s_tasks.packing.tree import Pass, Request, Tokens, common, plan_passes

__all__ = [
    "Pass",
    "Plan",
    "Request",
    "Scores",
    "Tokens",
    "common",
    "cut_rows",
    "generate",
    "make_plan",
    "plan_passes",
    "score",
]
