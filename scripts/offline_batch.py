"""Questions in, answers out, with the ``LLM`` class: what a program of your own looks like.

    python scripts/offline_batch.py "What is 2 plus 2?" "Name a prime." --pp 2
    python scripts/offline_batch.py --file questions.txt --model FOLDER --tp 2 --max-tokens 256

Without ``--model`` the demo checkpoint answers; without questions two examples are asked. Answers go to stdout,
progress to stderr.
"""

import argparse
from pathlib import Path

from splitrank import LLM
from splitrank.serving.protocol.sampling_params import SamplingParams

EXAMPLES = ["What is 2 plus 2?", "Tom has 3 apples and buys 4 more. How many has he now?"]


def main() -> int:
    arguments = parse_arguments()
    questions = read_questions(arguments)
    params = SamplingParams(max_tokens=arguments.max_tokens, temperature=arguments.temperature)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    with LLM(model=arguments.model, tp=arguments.tp, pp=arguments.pp) as llm:
        answers = llm.chat(conversations, params, chat_template_kwargs={"enable_thinking": arguments.thinking})
    for question, answer in zip(questions, answers, strict=True):
        print(f"Q: {question}\nA: {answer.text.strip()} ({len(answer.token_ids)} tokens, {answer.finish_reason})\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="*", help="questions, one an argument")
    parser.add_argument("--file", type=Path, help="more questions, one a line")
    parser.add_argument("--model", help="checkpoint folder or hub id; the demo checkpoint if not given")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks a stage (default: 1)")
    parser.add_argument("--pp", type=int, default=1, help="pipeline stages (default: 1)")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer in tokens (default: 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--thinking", action="store_true", help="let the model think before it answers")
    return parser.parse_args()


def read_questions(arguments: argparse.Namespace) -> list[str]:
    lines = arguments.file.read_text(encoding="utf-8").splitlines() if arguments.file else []
    questions = [*arguments.questions, *(line for line in lines if line.strip())]
    return questions or EXAMPLES


if __name__ == "__main__":
    raise SystemExit(main())
