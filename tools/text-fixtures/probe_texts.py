"""The texts every tokenizer fixture is probed with.

Invisible characters are written as escapes so that an editor cannot change them unnoticed.
"""

EMPTY_AND_WHITESPACE = [
    "", " ", "  ", "   ", "    ", "     ", " " * 16, " " * 37, "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\n\n\n\n\n",
    "\r\n", "\r", " \n", "\n ", " \n \n ", "\t \t", "\v\f", "\u0085", "\u00a0", "\u00a0\u00a0a", "\u3000", "\u2003x\u2009y",
    "\u1680", "\u2028a\u2029b", "\u200b", "\u200c\u200d", "\u2060", "\ufeff", "\ufeffhello",
    " hello", "  hello", "hello ", "hello  ", "  hello  world  ", "hello\tworld", "hello\nworld", "hello\r\nworld\r\n",
    "a\n\nb", "a\n\n\nb", "a \n\n  b", "line one\n  line two\n    line three\n", "a\u00a0b", "a\u3000b",
    "a\u200bb", "ab\u200dcd", "\n\n  \n\n    x", "x   y    z     w",
]

LATIN = [
    "a", "A", "hello", "Hello", "HELLO", "Hello world", "Hello, world!", "The river carries the blue boat in the rain.",
    "My neighbour remembers seventeen apples.", "Don't stop: it's 5 o'clock!", "caf\u00e9", "cafe\u0301",
    "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m", "\u212bngstr\u00f6m", "na\u00efve fa\u00e7ade",
    "gar\u00e7on \u00e0 la cr\u00eape", "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144",
    "\u1ec7 e\u0323\u0302 e\u0302\u0323", "o\u0308\u0304\u0301", "a" + "\u0301" * 12, "\u0301", "\u0301a",
    "\ufb01n \ufb00 \ufb03 \ufb06", "\u00df \u1e9e", "\u0130stanbul \u0131", "\u01c4 \u01c5 \u01c6", "\u00bd \u00b2 \u2460 \u2167 \u2122",
    "\uff28\uff45\uff4c\uff4c\uff4f\u3000\uff11\uff12\uff13\uff01", "\uff76\uff9e\uff77\uff9e", "\u2026 \u2025 \u2024",
    "\u201cquoted\u201d \u2018single\u2019 \u2013 \u2014 \u2212", "\u0141\u00f3d\u017a \u0110\u1ea1i",
]

OTHER_SCRIPTS = [
    "\u6211\u559c\u6b22\u4e2d\u6587\u3002", "\u5b66\u751f\u5fd8\u8bb0\u4eba\u5de5\u667a\u80fd\uff01\u4f60\u770b\u89c1\u6708\u4eae\uff1f",
    "\u6211 \u559c\u6b22 Python \u548c 3 \u4e2a\u82f9\u679c", "\u9f98\u9f49\u7c72", "\U00020000\U0002a6d6", "\uf900\u8c48",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u304b\u3099 \u304c \u30f4", "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u3131\u314f", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627", "\ufefb \ufdfa",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0915\u094d\u0937\u093f \u095b \u091c\u093c", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e33", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0451 \u0435\u0308",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03a3\u03c2", "\u202bmixed \u202eabc\u202c \u05d0\u05d1", "\u0660\u0661\u0662 \u0967\u0968\u0969 \u4e00\u4e8c\u4e09",
]

EMOJI = [
    "\U0001f600", "\U0001f600\U0001f600\U0001f600", "I made soup \U0001f372, ok? \U0001f44d",
    "\U0001f44d\U0001f3fd \U0001f44d\U0001f3ff", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f9d1\U0001f3fe\u200d\U0001f680", "\U0001f1e8\U0001f1ed\U0001f1ef\U0001f1f5 \U0001f1fa",
    "\u2764\ufe0f \u2764\ufe0e \u2764", "1\ufe0f\u20e3 #\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\u263a\ufe0fa",
]

DIGITS_AND_CODE = [
    "0", "7 8 9", "1234567890", "12345678901234567890123456789012345678901234567890", "3.14159e-10", "1,000,000.00",
    "-42 +42 4-2", "0x1F 0b101 1_000", "v2.0.1-rc3", "12:34:56 2024-02-29", "15 15 1984 a15b",
    "def add(a, b):\n    return a + b", "def f(x):\n\tif x:\n\t\treturn  x\n\n\n\tpass\n",
    "for (int i = 0; i < 10; i++) {\n        total += values[i];\n}\n",
    "    fn main() {\n        println!(\"{}\", x);\n    }", "https://example.org/a/b?c=1&d=%20#frag", "user.name+tag@example.co.uk",
    "C:\\Users\\me\\file.txt", "{\"name\": \"get_time\", \"n\": [1, 2, null]}", "<p class=\"x\">a &amp; b</p>",
    "a_b-c.d/e\\f|g", "!!!??? ... ----- ===== *****", "$x = \\frac{1}{2}$", "snake_case camelCase PascalCase",
]

UNUSUAL_CODE_POINTS = [
    "\x00", "a\x00b", "\x00\x00\x00", "\x01", "\x01\x02\x1f", "\x7f", "a\x7fb", "\x1b[31mred\x1b[0m", "\x08\x0e", "\x80\x9f",
    "\ufffd", "a\ufffdb", "\ufffd\ufffd", "\u2581", "\u2581hello", "a\u2581b", "\u2581\u2581", "hello\u2581world", " \u2581 a", "\u2581 ",
    "\ue000\ue001", "\U000f0000x", "\U0010fffd", "\U0010ffff", "\ufffe\uffff", "\u0378", "\U000e0fff", "\ufdd0", "\u00ad soft\u00adhyphen",
    "\ufff9\ufffa", "\u034f", "\u2047", " \u2047 ", "\u115f\u3164",
]

MERGE_ORDER = [
    "aa", "aaa", "aaaa", "aaaaa", "aaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ab", "aba", "ababab", "bababab", "abaababaab",
    "aab aab baa", "lalalalala", "nananana banana", "hahahahah", "mississippi", "thethethe", "theretherethe", "ininining",
    "eerererer", "ssssss", "......", ".......", "==========", "-----", "the the the", "tthhee", "abc" * 25,
]

LONG = ["a" * 2000, "lorem" * 100, "\u4e2d" * 100, "the river carries " * 12, "x" + " " * 100 + "y", "\U0001f600" * 20, "\u0378" * 20]

# The user-defined and control symbols of the SentencePiece fixtures, inside words, adjacent, and at the edges.
SYMBOLS = [
    "<mask:1>", "<mask:1><mask:1>", " <mask:1>", "<mask:1> ", "a<mask:1>b", "hello <mask:1> world", "hello<mask:1>world", "<sep>",
    "<sep><mask:1>", "<mask:1><sep>a<sep>", "<mask:1", "<<mask:1>>", "<mask:2>", "<MASK:1>", "caf<sep>\u00e9", "\n<sep>\n",
    "<s>", "</s>", "<unk>", "<pad>", "<|ctrl|>", "<0x41>", "<0xFF>", "a<s>b", "<s>hello</s>", "a<|ctrl|>b", " <s> ", "<|ctrl|><sep><|ctrl|>",
    "<unk><unk>", "<0x0A>", "\uff1csep\uff1e", "<se\u0301p>", "<emph>word</emph>", "a <emph> b", "<em", "<emphasis>",
]

TEXTS = (EMPTY_AND_WHITESPACE + LATIN + OTHER_SCRIPTS + EMOJI + DIGITS_AND_CODE + UNUSUAL_CODE_POINTS + MERGE_ORDER
         + LONG + SYMBOLS)
assert len(TEXTS) == len(set(TEXTS)), "a probe text is listed twice"
