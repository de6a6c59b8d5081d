"""Steps that no request asked for, run when a rank starts: prompts of zeros."""

import torch

from splitrank.models.hidden_states import HiddenStates
from splitrank.models.qwen3_5 import Stage
from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import AdmittedRequest, ChunkPlan, NewPages
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.gpu_steps import GpuSteps
from splitrank.serving.rank.request_table import RequestTable


def states_before(model: Stage, rows: int) -> HiddenStates | None:
    """Stand-ins for what the stage before sends, [rows, H] each; None on the first stage."""
    if model.stage.is_first:
        return None
    shape = (rows, model.config.hidden_size)
    return HiddenStates(*(model.ops.zeros(*shape, dtype=model.dtype) for _ in HiddenStates._fields))


@torch.inference_mode()
def run_prompt(steps: GpuSteps, table: RequestTable, inputs: HiddenStates | None, rows: int, page: int) -> None:
    """A step of one prompt of ``rows`` tokens, in slot 0, which nothing holds yet; all its KV goes to one page.

    ``inputs`` [at least rows, H] each: from the stage before, None on the first.
    """
    table.admit(AdmittedRequest(0, 0, [0] * rows, SamplingParams(), 0), None)
    table.add_pages(NewPages(0, [page] * pages_needed(rows, table.page_size)))
    states = None if inputs is None else inputs.first_rows(rows)
    steps.forward(steps.make_batch([], [ChunkPlan(0, rows, True)], []), states)
    table.take(0)
