"""transformers' Auto classes: `from_pretrained`, a processor that takes regions, and `generate`.

`import pixelrefer_fast` is enough: AutoConfig, AutoProcessor and AutoModelForImageTextToText then know both models, and
nothing is imported before one of these is (`pixelrefer_fast._auto_classes`).

import pixelrefer_fast
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("PixelRefer-Lite-2B")
model = AutoModelForImageTextToText.from_pretrained("PixelRefer-Lite-2B")
inputs = processor(images=image, text="What is <region>?", regions=[mask], return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=64)
processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
"""
