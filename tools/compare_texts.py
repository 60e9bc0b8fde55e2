#!/usr/bin/env python3
"""Encode and decode texts with published tokenizers as transformers does, for a test to compare.

usage: python tools/compare_texts.py FOLDER OUT.json
       AMNESIC_TEXTS=OUT.json cargo test --test unscrubbed as_transformers -- --nocapture

needs: transformers

FOLDER has a folder for each tokenizer (tools/fetch_tokenizers). Each of them encodes each of
the texts below, with and without the special tokens around it, and decodes the ids, with and
without the special tokens in them. The decoded text is also taken in pieces, as each id adds
to it, from DecodeStream of the tokenizers library on which transformers stands.
"""

import json
import os
import random
import sys
import warnings

from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

# All that tools/fetch_tokenizers fetches but llama2 and gpt4o: transformers' classes for these two make a tokenizer of their
# own, which is not that of tokenizer.json (no space before a text that begins with one; GPT-2's pattern).
TOKENIZERS = ["qwen3", "llama3_1", "llama3", "gemma3", "deepseek_v3", "gptoss", "command_r_plus", "mistral_nemo", "claude",
              "gemini", "gpt35turbo"]

# What people write to a model, in the scripts in which they write it.
WRITTEN = [
    "Hello, world!",
    "What's the weather like in Zürich today? It's 5 °C, isn't it?",
    "The quick brown fox jumps over the lazy dog. 0123456789 times; 3.14159, 1,000,000 and 1e-9.",
    "Dear Dr. O'Neill,\n\nplease find attached the patient's report (ref. #2026-11/30).\n\nKind regards,\nJ.\n",
    "DON'T SHOUT. I'LL SAY IT'S FINE, WE'RE HERE, YOU'VE WON, HE'D GO, I'M OFF.",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case dotted.path/with\\both",
    "https://example.org/a/b?c=d&e=%20f#g and mail@example.org, ftp://10.0.0.1:21",
    "Ça va ? Où est l'élève, garçon ? « Voilà », dit-il : œuf, cœur, naïve, Noël.",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. Straße, STRASSE, ẞ.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia; ¿y el año? ¡Olé!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. Árvíztűrő tükörfúrógép.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Її ґанок.",
    "Ξεσκεπάζω την ψυχοφθόρα σας βδελυγμία. Άλφα, βήτα, γάμμα.",
    "זה כיף סתם לשמוע איך תנצח קרפד עץ טוב בגן. שָׁלוֹם",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ١٢٣٤٥",
    "چو ایران نباشد تن من مباد. می‌خواهم",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले। १२३",
    "আমি বাংলায় গান গাই। ১২৩৪",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "ມື້ນີ້ອາກາດດີ ຂ້ອຍຢາກໄປທ່ຽວ",
    "မြန်မာစကား ပြောတတ်ပါသလား။",
    "ខ្ញុំអាចញ៉ាំកញ្ចក់បាន ដោយគ្មានបញ្ហា",
    "ვეპხის ტყაოსანი შოთა რუსთაველი. ღმერთსი შემვედრე",
    "Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ։",
    "ሰማይ አይታረስ ንጉሥ አይከሰስ።",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。我能吞下玻璃而不伤身体。",
    "いろはにほへと ちりぬるを。私はガラスを食べられます。ｶﾀｶﾅ ＡＢＣ１２３",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㅋㅋㅋ",
    "Tôi có thể ăn thủy tinh mà không hại gì. Tiếng Việt: ằ ẵ ặ ở ữ ỵ",
    "Türkçe: İstanbul'da ışık, IĞDIR, ğüşöç",
    "བོད་ཡིག་ཤེལ་སྒོ་ཟ་ནས་ང་ན་གི་མ་རེད།",
    "🦀 👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 1️⃣ 👍🏽 🫠 ☃️ ❤️‍🔥",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β), ∑_{i=0}^{n} i² ≠ ∞ ½ ⅔ Ⅷ ①",
    "e\u0301 vs é, \u1e9b\u0323, \u0344, x\u0301\u0323\u0300\u031b, \u1100\u1161\u11a8 vs 각, ﬁ ﬀ, Å vs \u212b",
    "\u200bzero\u200cwidth\u200djoiners\ufeff and \u00adsoft\u00a0hard\u2003em\u3000wide\u2028lines\u2029para",
    "tabs\tand\t\ttwo, lines\r\nof\rthree\n\n\nkinds\v\f\x85end",
    "   three before and three after   ",
    "\n\n  \n \n\t\n",
    " ",
    "",
    "a",
    "ſ 'ſ it'ſ K Ǆ",
    "\x00\x01\x1b[31mred\x1b[0m\x7f\x80",
    "\ufffd \uffff \U0010ffff \ue000 \U000e0041",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "---------------------------------------- ======== ........ ________ ********",
    "12 345 6789 01234567890123456789 1/2 10:30 2026-11-30T10:49:00Z 0xDEADBEEF 1_000 ٣٤٥ १२",
    "▁▁▁ ▁a ĠĠ Ċ Ġword <0x0A><0xE2> ## ##ing",
    'fn main() {\n    let x: Vec<u8> = vec![0; 1 << 20];\n    println!("{x:?}"); // done\n}\n',
    "def f(a, *b, **c):\n\treturn {k: v for k, v in c.items() if v is not None}  # noqa\n",
    "#include <stdio.h>\nint main(void){for(int i=0;i<10;++i)printf(\"%d\\n\",i);return 0;}\n",
    'SELECT "a", count(*) FROM t WHERE b <> \'it\'\'s\' GROUP BY 1 HAVING count(*) >= 2;',
    '{"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5, -3e10, null, true]}}',
    "<html><body class=\"x\">&lt;b&gt; &amp;amp; <!-- c --></body></html>",
    "| a | b |\n|---|:-:|\n| 1 | **2** |\n\n```rust\nlet y = 1;\n```\n\n- [x] done\n  1. sub\n",
    "\\begin{align} \\frac{a}{b} &= \\sqrt{x^2 + y^2} \\\\ \\end{align} $E=mc^2$",
    "diff --git a/x b/x\n@@ -1,3 +1,3 @@\n-        old\n+        new\n         same\n",
    "        eight\n    four\n  two\n one\n                sixteen\n\t\t\tthree tabs",
    "{{ messages[0]['content'] | trim }}{% if tools is none %}x{% endif %}",
]
# Added tokens of one or the other of them, and what nearly is one.
MARKS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<|begin_of_text|>", "<|eot_id|>",
    "<|start_header_id|>", "<|python_tag|>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<unused5>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜tool▁calls▁begin｜>", "<|start|>", "<|message|>", "<|return|>",
    "<|channel|>", "<|call|>", "<|", "|>", "<s>", "</s>", "<unk>", "[INST]", "<|im_end", "im_end|>", "<|reserved_special_token_7|>",
    "\n\n\n", "  ", "     ", "\t\t", "<table>", "</h1>", "[multimodal]", "<mask>",
]


def texts():
    """At least 300 texts, always the same ones."""
    chance = random.Random(20261130)
    found = list(WRITTEN)
    found += [f"{mark}word {mark} and{mark}\n" for mark in MARKS]
    # parts of what is above, cut where nobody would, and joined to others
    letters = [text for text in WRITTEN if len(text) > 8]
    for _ in range(140):
        parts = []
        for _ in range(chance.randint(1, 4)):
            text = chance.choice(letters)
            start = chance.randrange(len(text))
            parts.append(text[start : start + chance.randint(1, 40)])
        found.append(chance.choice(["", " ", "\n", *MARKS]).join(parts))
    # any characters at all
    for _ in range(60):
        points = [chance.choice([0x7F, 0x7FF, 0xD7FF, 0x1FAFF]) for _ in range(chance.randint(1, 30))]
        drawn = (chance.randint(0, most) for most in points)
        found.append("".join(chr(point) for point in drawn if not 0xD800 <= point < 0xE000))
    found += [text * 20 for text in WRITTEN[:12]]
    return found


def streamed(tokenizer, ids):
    """What each id adds to the text."""
    stream = DecodeStream(skip_special_tokens=True)
    return [stream.step(tokenizer.backend_tokenizer, one) or "" for one in ids]


def main():
    folder, out = sys.argv[1:]
    warnings.filterwarnings("ignore")
    every = texts()
    assert len(every) >= 300 and len(set(every)) == len(every), len(every)
    cases = {}
    for name in TOKENIZERS:
        tokenizer = AutoTokenizer.from_pretrained(os.path.join(folder, name))
        cases[name] = []
        for text in every:
            ids = tokenizer.encode(text)
            decode = {skips: tokenizer.decode(ids, skip_special_tokens=skips, clean_up_tokenization_spaces=False)
                      for skips in (True, False)}
            cases[name].append({
                "ids": ids,
                "plain": tokenizer.encode(text, add_special_tokens=False),
                "text": decode[True],
                "whole": decode[False],
                "pieces": streamed(tokenizer, ids),
            })
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"texts": every, "tokenizers": cases}, file)
    print(f"{len(every)} texts, {len(cases)} tokenizers")


if __name__ == "__main__":
    main()
