"""Training text that makes merges of everything a pre-tokenizer may separate: digits, marks, case, line ends."""

import random

LINES = [
    "I'm sure you're right, it's what they've said: we'll see, he'd know, don't you? I'M IT'S DON'T WE'LL THEY'VE",
    "dog's cat's Bob's WORLD'S ABCdef's it'll that'd", "camelCase PascalCase HTTPServer XMLHttpRequest iPhone eBay getValue ABCdef HelloWorld",
    "if (x) {\n\treturn y;\n}\n\nelse {\n    z();\n}\n// end\n", "path/to/file/\nand/\n./a/\n//\n", "end!\n\nNext?\n\n...\n\n!\n?\n.\n\n",
    "(paren) [bracket] {brace} \"quoted\" 'single' <tag> #define $var @user _name a.b.c x-y e.g. i.e.",
    "100px 3rd 1st 2nd 42nd $5 5% 10:30 x2 y3 a1 b22 v1.2.3 c333 4444d 12a34", "1,234 3.14 0.5 1e10 0xff -42 +7",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645 \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e01\u0e33", "\ud55c\uad6d\uc5b4 \ubc18\uac11\uc2b5\ub2c8\ub2e4",
    "\u3053\u3093\u306b\u3061\u306f \u4e16\u754c123 \u4e2d\u6587abc\u4e2d\u6587ABC", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0928\u093f", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0416\u0423\u041a",
    "caf\u00e9 cafe\u0301 e\u0301te\u0301 E\u0301 \u00e9t\u00e9 \u00c9COLE a\u0308o\u0308 A\u0301B", "a\u00a0b \u3000 c\u3000d", "\t\t\tx   \n   y\n\t\tz   \n\n\n", "    four        eight  two\t\ttabs",
]


def lines():
    rng = random.Random(5)
    for _ in range(400):
        yield rng.choice(LINES)
        yield " ".join(str(rng.randrange(10 ** rng.randint(1, 12))) for _ in range(2))
        yield " ".join(rng.sample(["12", "123", "1984", "2024", "00", "000", "11", "22", "333", "1234", "12345"], 3))
