"""Texts on which tokenizers of different kinds part ways, beyond those in text-fixtures/probe_texts.py.

Invisible characters are written as escapes so that an editor cannot change them unnoticed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "text-fixtures"))
from probe_texts import LONG, TEXTS  # noqa: E402

CONTRACTIONS = [
    "I'm you're he's she'd we'll they've don't", "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE DON'T", "i'M You'Re it'S We'Ll",
    "'s 't 're 've 'm 'll 'd", "x'sy 'tis 'twas o'clock rock'n'roll", "I\u2019m you\u2019re it\u2019s", "it''s '''s ' s '\ns",
    # U+017F is an s, and U+212A a k, to a case-insensitive regex.
    "it'\u017f that'\u017fx", "5's 10's 3'd A'LLb", "d'accord l'\u00e9t\u00e9 L'\u00c9T\u00c9", "can't\tcan't\ncan't", "'S'T'RE'VE",
]

DIGITS = ["1234567890123"[:n] for n in range(1, 13)] + [
    "a1b22c333d4444e55555", "1 22 333 4444 55555 666666", " 1  12   123    1234", "1,234,567.891", "00:00:00.000001",
    "\u0661\u0662\u0663\u0664\u0665", "\uff11\uff12\uff13\uff14", "\u00b2\u00b3\u00b9\u2074 x\u00b2", "\u2160\u2161\u2162\u216b", "\u4e00\u4e8c\u4e09\u56db 12\u4e0334",
    "\u00bd\u00bc\u00be3", "1\u0301 2\u20e3", "3.14\n2.71\n", "year 1984AD 42nd 007", "\u0968\u0966\u0968\u096a \u0e51\u0e52\u0e53",
]

CASE = [
    "camelCase HTTPServer iPhone XMLHttpRequest eBay", "ABCdef abcDEF AbCdEf aBCd", "\u00c9COLE \u00c9cole \u00e9COLE",
    "\u0416\u0423\u041a \u0436\u0443\u043a \u0416\u0443\u041a", "\u01c5ip \u1f88\u1fc3 \u01f2a", "\u02b0\u02b7x a\u02bcb \u02c8a\u02d0", "stra\u00dfeSTRASSE",
    "\u0e01\u0e32\u0e23Test\u0e20\u0e32\u0e29\u0e32", "\u4e2d\u6587ABC\u4e2d\u6587abc", "\u0301A\u0301B a\u0301B\u0301", "\uff21\uff22\uff43\uff44", "aA1bB2\u00aacC",
]

SPACES_AND_ENDS = [
    "a b  c   d    e     f", "\ta\t\tb\t\t\tc", " \ta \t b\t ", "a \n b\n c \n", "a\n \nb", "a\r\n\r\nb\r\r\nc", "a\n\n\n\n\nb  \n\n  c",
    "end.\n\nStart!\n(x)\n", "x/\ny//\n\nz", "!\n?\r\n...\n\n", "path/\npath/\r\n", "a\u00a0 b \u00a0c\u00a0\u00a0", "\u3000\u3000a\u3000 b",
    "a\u2003\u2002b\u202f", "\u0085a\u0085\u0085b", "a\x0bb\x0cc\x1cd\x1fe", "a\u180eb\u200bc", "trailing   ", "trailing\t\n", "  \n", "\n  ",
    "x\n\ty\n\t\tz\n", "        eight", "         nine", "a        b", "a" + " " * 9 + "b", "\t\t\t\t\tx", " \u3000 \u00a0 \t", ".  .   .", "-\n--\n---",
]

MARKS = [
    "e\u0301 \u00e9 E\u0301 \u00c9", "a\u0308\u0323 a\u0323\u0308 \u1ea1\u0308", "\u1100\u1161\u11a8 \uac01", "\u304b\u3099\u304d\u3099 \u304c\u304e",
    "\u0958 \u0915\u093c", "\u2126 \u03a9 \u212a K", "\u0344 \u0308\u0301", "\ufb1d\ufb2a", "\u0e01\u0e33 \u0e01\u0e4d\u0e32", "q\u0307\u0323 q\u0323\u0307",
    "\u0928\u093f \u0928\u0940 \u0915\u094d\u0930", "\u0628\u0650\u0633\u0652\u0645\u0650 \u0627\u0644\u0644\u0651\u0647", "Z\u0351\u036b\u0343a\u0335\u0334l\u0336\u0337g\u0321o\u0310",
    "\u1e9b\u0323", "\u2adc \u2add", "\U0001d15e \U0001d157\U0001d165", "a\u0345\u0301", "\u09c7\u09be \u09cb",
]

SCRIPTS = [
    "\ubc18\uac11\uc2b5\ub2c8\ub2e4, \uc138\uacc4!", "\u4eca\u65e5\u306f\u3001\u30c6\u30b9\u30c8\u3067\u3059\u3002123\u500b", "\u4f60\u597d\uff0c\u4e16\u754c\uff01Hello\uff0c\u4e16\u754c\u3002",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 123", "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645\u060c 2024", "\u05e9\u05dc\u05d5\u05dd, \u05e2\u05d5\u05dc\u05dd!",
    "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u0532\u0561\u0580\u0565\u0582", "\u1e6d\u0101\u1e93\u0131q \u01e8\u01e9", "\U00010348\U00010330 \U0001d400\U0001d401\U0001d7d8\U0001d7d9",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7x\U0001f1ea", "\U0001f469\U0001f3fd\u200d\U0001f4bb codes \U0001f9d1\u200d\U0001f91d\u200d\U0001f9d1", "\u26a0\ufe0f\u2714\ufe0f\u2b50\u2b50",
    "a\u2028b\u2029c", "\u0149 \u0130i\u0131I \u00df\u1e9e", "\u00b5\u03bc \u2211\u220f\u221a\u221e \u2264\u2265", "\u20ac100 \u00a320 \u00a55 $3", "\u2019\u2018\u201c\u201d\u201e\u00ab\u00bb\u2039",
]

CODE = [
    "if (a<=b&&c!=d||!e) {x+=1; y->z;}", "#include <stdio.h>\r\n\tint main(){return 0;}\r\n", "SELECT * FROM t WHERE a='b''c';",
    "\"\\n\\t\\u0041\"", "lambda x: x**2 if x%2==0 else -x", "<!-- comment --><br/>", "a==b===c<=>d...e::f", "@decorator\n@x.y(1)\n",
    "/* c */ // d\n", "`code` ``x`` ```py\nx\n```", "x_1y_2__z__", "s/\\s+$//g", "{{a}} {% b %} ${c}", "~/.config/x.y-z", "\\begin{x}\\[a\\]",
]

TOKEN_LOOKALIKES = ["[PAD500]", "[PAD", "<|im_start", "<|", "|>", "<||>", "<0x0a>", "\u0120hello", "\u010a", "<unused1>", "\u0000<s>"]

SHARED = [text for text in TEXTS if text not in LONG] + [LONG[0][:100], LONG[4], LONG[5]]
SHARED += CONTRACTIONS + DIGITS + CASE + SPACES_AND_ENDS + MARKS + SCRIPTS + CODE + TOKEN_LOOKALIKES
SHARED = list(dict.fromkeys(SHARED))
