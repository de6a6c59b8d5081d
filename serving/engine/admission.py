"""Refuses requests on arrival: those that can never be computed here, and those beyond the limit of open requests."""

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import AddRequest, LaunchSpec, RequestOutput


def refuse(spec: LaunchSpec, message: AddRequest, num_open: int) -> RequestOutput | None:
    """The refusal of a request that arrives while ``num_open`` others are open; None if it is accepted."""
    length = len(message.prompt_token_ids)
    if num_open >= spec.max_running_requests + spec.max_queued_requests:
        running, queued = spec.max_running_requests, spec.max_queued_requests
        text = f"{num_open} requests are open; the limit is {running} running and {queued} queued"
        return error_output(message.request_id, "queue_full", text)
    if not length:
        return error_output(message.request_id, "invalid_request", "the prompt is empty")
    if length >= spec.max_model_len:
        text = f"maximum context length is {spec.max_model_len} tokens, but the prompt has {length} and leaves none"
        return error_output(message.request_id, "invalid_request", text)
    low, high = min(message.prompt_token_ids), max(message.prompt_token_ids)
    if low < 0 or high >= spec.vocab_size:
        text = f"prompt token ids must be between 0 and {spec.vocab_size - 1}, not {low if low < 0 else high}"
        return error_output(message.request_id, "invalid_request", text)
    tokens = min(length + message.params.max_tokens, spec.max_model_len) - 1  # the last token needs no page
    if pages_needed(tokens, spec.page_size) > spec.num_pages:
        need = f"{tokens} tokens need {pages_needed(tokens, spec.page_size)} pages of {spec.page_size}"
        return error_output(
            message.request_id, "invalid_request", f"the request can never fit: {need}, there are {spec.num_pages}"
        )
    return None


def error_output(request_id: str, code: str, text: str) -> RequestOutput:
    """The last output of a request that ends with an error."""
    return RequestOutput(request_id=request_id, token_ids=[], finish_reason="error", error=text, error_code=code)
