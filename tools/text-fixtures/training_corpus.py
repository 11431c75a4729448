"""Training text for the tiny tokenizers, generated from word lists written for this project."""

import random

SUBJECTS = ["the river", "a small engine", "my neighbour", "the old library", "every student", "our captain",
            "the night train", "a quiet cat", "the baker", "somebody", "the compiler", "a wooden bridge"]
VERBS = ["carries", "remembers", "repairs", "counts", "follows", "translates", "measures", "forgets", "paints",
         "answers", "prefers", "ignores"]
OBJECTS = ["the blue boat", "three letters", "an unusual question", "the morning bread", "a broken clock",
           "seventeen apples", "the shortest path", "their garden", "a list of numbers", "the whole story",
           "the first token", "warm tea"]
ENDINGS = ["before sunrise", "after 1984", "in the rain", "without a word", "every 15 minutes", "again and again",
           "at the station", "for the second time", "with great care", "near the harbour", "in 2 steps", "at last"]
CONNECTORS = ["because", "although", "while", "until", "and then", "whenever"]

CHINESE_SUBJECTS = ["我", "你", "他们", "老师", "学生", "小猫", "河水", "中国"]
CHINESE_VERBS = ["喜欢", "看见", "学习", "需要", "忘记", "回答"]
CHINESE_OBJECTS = ["中文", "大学", "一本书", "问题", "天上的月亮", "我们的家", "人工智能", "三个苹果"]

ACCENTED = [
    "Le garçon a mangé une crêpe près de la forêt, où l'été dure déjà.",
    "À bientôt, répondit la fenêtre ouverte sur le côté naïf de l'île.",
    "Die Straße führt über die Brücke zu den grünen Häusern.",
    "Müde Vögel schlafen nachts in größeren Bäumen.",
    "El niño soñó con una montaña pequeña y un corazón más azul.",
    "¿Dónde está el año que perdió el señor Ibáñez?",
    "A canção da manhã não é só uma ilusão de avó.",
    "Zażółć gęślą jaźń, powiedziała łódź na środku rzeki.",
    "Trời hôm nay đẹp quá, chúng tôi đi bộ đến trường.",
    "Kære ven, åen løber stille forbi den røde lade.",
]
EMOJI = ["Good morning 😀 and good night 🌙.", "I made soup 🍲🍲, do you like it? 👍", "Ship it 🚀 today 😀😀!",
         "Heart ❤️ and star ⭐ and sun ☀️."]
CODE = [
    "def add(a, b):\n    return a + b",
    "for (int i = 0; i < 10; i++) {\n    total += values[i];\n}",
    "fn main() {\n    let x = vec![1, 2, 3];\n    println!(\"{}\", x.len());\n}",
    "if x is None:\n        raise ValueError(\"x is missing\")",
    "SELECT name, price FROM items WHERE price > 100;",
    "<p class=\"note\">see https://example.org/a/b?c=1&d=2</p>",
    "import os\nimport sys\n\nprint(os.path.join(sys.argv[0], 'x'))",
    "{\"name\": \"get_time\", \"arguments\": {\"zone\": \"UTC\"}}",
]
# Repeated letters give the trainer merges such as "aa" and "ab", which the tie-breaking cases need.
REPETITIONS = ["aaaa aaaaaa aaaaaaaa", "ababab abababab abab", "lalala nanana lalalala", "hahaha haha hahahaha",
               "....... ---- ====== ****"]


def english_sentence(rng: random.Random) -> str:
    first = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}"
    if rng.random() < 0.4:
        first += f" {rng.choice(CONNECTORS)} {rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}"
    text = f"{first} {rng.choice(ENDINGS)}"
    return text[0].upper() + text[1:] + rng.choice([".", "!", "?", "..."])


def chinese_sentence(rng: random.Random) -> str:
    return rng.choice(CHINESE_SUBJECTS) + rng.choice(CHINESE_VERBS) + rng.choice(CHINESE_OBJECTS) + rng.choice("。！？")


def sentences(seed: int = 20) -> list[str]:
    rng = random.Random(seed)
    lines = [english_sentence(rng) for _ in range(320)]
    lines += [chinese_sentence(rng) for _ in range(80)]
    lines += (ACCENTED + EMOJI + CODE) * 3 + REPETITIONS * 40
    rng.shuffle(lines)
    return lines
