"""Chat templates of the shape that the families of image-text models publish.

Roles, the image's placeholder, the mark at a message's end and the generation prompt are theirs;
tools, documents and the like are left out.
"""

QWEN = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2_5 = QWEN.replace(
    "SYSTEM",
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}",
)
QWEN3 = QWEN.replace("SYSTEM", "")
# It thinks before it answers unless enable_thinking is false; an old answer has no thoughts.
QWEN3_5 = QWEN3.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
    "{% endif %}",
).replace(
    "{{ message['role'] }}\n",
    "{{ message['role'] }}\n"
    "{% if loop.last and message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}",
)
IMAGES_FIRST = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}IMAGE{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}TEXT{% endfor %}"
)
LLAVA = (  # no end mark behind an answer: the published one has none
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    + IMAGES_FIRST.replace("IMAGE", "{{ '<image>\n' }}").replace("TEXT", "{{ part['text'] + ' ' }}")
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + IMAGES_FIRST.replace("IMAGE", "<image>").replace("TEXT", "{{ '\n' + part['text'] }}")
    + "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL = QWEN3.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n").replace(
    "<|vision_start|><|video_pad|><|vision_end|>", "<video>\n"
)
IDEFICS = (
    "START{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "TURN{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}END\n{% endfor %}{% if add_generation_prompt %}TURNmodel\n{% endif %}"
)
GEMMA3 = (
    GEMMA.replace("TURN", "<start_of_turn>")
    .replace("END", "<end_of_turn>")
    .replace("IMAGE", "<start_of_image>")
)
GEMMA4 = (
    GEMMA.replace("TURN", "<|turn>")
    .replace("END", "<turn|>")
    .replace("IMAGE", "{{ '\n\n<|image|>\n\n' }}")
)
