"""vLLM: `vllm serve FOLDER` and `vllm.LLM(FOLDER)` answer questions about marked objects with this package's models.

vLLM finds the models by themselves where both packages are installed (`plugin`). Their vision side is this package's:
all objects of a step in one packed pass. vLLM loads and runs the language model.

from vllm import LLM
from pixelrefer_fast.engines.vllm import Marked, chat_prompt

llm = LLM("PixelRefer-Lite-2B")
marked = Marked("street.jpg", [[10, 20, 90, 180]])
llm.generate({"prompt": chat_prompt("What is <region>?"), "multi_modal_data": {"image": marked}})
"""

from pixelrefer_fast.engines.prompts import chat_prompt, embeds_text
from pixelrefer_fast.engines.vllm.marked import Marked

__all__ = ["Marked", "chat_prompt", "embeds_text"]
