"""A small story grammar: endless simple children's stories from word lists and plot shapes.

Everything is drawn from the `random.Random` handed in, so a seed names a story. Run the file to
print a few stories and chats:  python grammar.py [seed]
"""

import random
import re
import sys
from dataclasses import dataclass, field

import words
from plots import (ENDINGS, NAMED_OPENINGS, OPENINGS, OWNER_OPENINGS, PLAIN_OPENINGS, PLOTS,
                   WISHER_OPENINGS)

PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his"},
    "she": {"he": "she", "him": "her", "his": "her"},
    "they": {"he": "they", "him": "them", "his": "their"},
}
MADE_UP_NAME_SHARE = 0.25  # invented names teach the model to copy a name it has never seen


@dataclass
class Character:
    """Someone in a story. `name` is how the text refers to them after the introduction."""

    sort: str  # child, pair, animal, water, fantasy or folk
    noun: str  # "fox", "girl", "brother and sister"
    adjective: str
    gender: str  # he, she or they
    proper: str = ""  # "Rusty", or nothing

    @property
    def name(self):
        return self.proper or f"the {self.noun}"

    @property
    def kind(self):
        if self.sort == "pair":
            return self.noun
        return with_article(f"{self.adjective} {self.noun}")

    @property
    def introduction(self):
        return f"{self.kind} named {self.proper}" if self.proper else self.kind

    def slots(self):
        """The words with which this hero is woven into a sentence."""
        plural = self.gender == "they"
        first = ("we", "us", "our", "are") if plural else ("I", "me", "my", "am")
        forms = dict(PRONOUNS[self.gender])
        forms |= dict(zip(("I", "me", "my", "am"), first))
        forms |= {"was": "were" if plural else "was", "h": self.name, "hero": self.introduction,
                  "hero_kind": self.kind}
        return forms


@dataclass
class Story:
    """A finished text together with what it is about, for requests and questions."""

    text: str
    plot: str
    hero: Character
    place_asked: str
    slots: dict = field(repr=False)


def with_article(phrase):
    """Put "a" or "an" before a phrase."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("unicorn", "use"))
    return f"{'an' if vowel else 'a'} {phrase}"


def invented_name(rng):
    """A name built from syllables."""
    syllables = [rng.choice(words.NAME_ONSETS) + rng.choice(words.NAME_VOWELS)
                 + rng.choice(words.NAME_CODAS) for _ in range(rng.choice([1, 2, 2, 2, 3]))]
    name = "".join(syllables)
    return capitalise(name[1:] if rng.random() < 0.2 and len(name) > 4 else name)


def proper_name(rng, gender, sort):
    """A first name that fits the kind of character."""
    if rng.random() < MADE_UP_NAME_SHARE:
        return invented_name(rng)
    if sort in ("animal", "water", "fantasy") and rng.random() < 0.7:
        return rng.choice(words.PET_NAMES)
    return rng.choice(words.GIRLS if gender == "she" else words.BOYS)


def make_child(rng):
    """A boy or a girl, always named."""
    gender = rng.choice(["he", "she"])
    noun = {"he": "boy", "she": "girl"}[gender]
    return Character("child", noun, rng.choice(words.HERO_ADJECTIVES), gender,
                     proper_name(rng, gender, "child"))


def make_pair(rng):
    """Two heroes that act together."""
    first, second = rng.sample(words.GIRLS + words.BOYS, 2)
    noun = "two friends"
    if rng.random() < 0.4:
        first, second = rng.choice(words.GIRLS), rng.choice(words.BOYS)
        noun = "a sister and a brother"
    return Character("pair", noun, "", "they", f"{first} and {second}")


def make_other(rng, sort, adjectives, named_share):
    """An animal, a fantasy creature or one of the village folk."""
    pool = {"animal": words.ANIMALS, "water": words.WATER_ANIMALS, "fantasy": words.FANTASY,
            "folk": list(words.FOLK)}[sort]
    noun = rng.choice(pool)
    gender = words.FOLK.get(noun, "any")
    if gender == "any":
        gender = rng.choice(["he", "she"])
    proper = proper_name(rng, gender, sort) if rng.random() < named_share else ""
    return Character(sort, noun, rng.choice(adjectives), gender, proper)


def hero_of_noun(rng, noun, adjective):
    """A hero that was promised by its noun, such as "a little fox"."""
    sort = "fantasy" if noun in words.FANTASY else "animal"
    gender = rng.choice(["he", "she"])
    proper = proper_name(rng, gender, sort) if rng.random() < 0.5 else ""
    return Character(sort, noun, adjective or rng.choice(words.HERO_ADJECTIVES), gender, proper)


def make_hero(rng):
    """Anyone who can be the centre of a story."""
    sort = rng.choices(["child", "pair", "animal", "water", "fantasy", "folk"],
                       [30, 7, 36, 5, 12, 10])[0]
    if sort == "child":
        return make_child(rng)
    if sort == "pair":
        return make_pair(rng)
    return make_other(rng, sort, words.HERO_ADJECTIVES, 0.55)


def make_helper(rng, hero):
    """Someone else than the hero, told apart by noun, name and adjective."""
    while True:
        if hero.sort == "water":
            helper = make_other(rng, "water", words.HELPER_ADJECTIVES, 0.3)
        elif rng.random() < 0.12:
            helper = make_child(rng)
        else:
            sort = rng.choices(["animal", "fantasy", "folk"], [70, 8, 22])[0]
            helper = make_other(rng, sort, words.HELPER_ADJECTIVES, 0.3)
        same_name = helper.proper and helper.proper in hero.proper
        if helper.noun != hero.noun and not same_name:
            return helper


def plot_slots(rng):
    """One choice for every slot that is neither hero nor helper."""
    noun, use = rng.choice(list(words.THINGS.items()))
    look = rng.choice(words.COLOURS + words.LOOKS)
    slots = {"thing": noun, "use": use, "a_thing": with_article(f"{look} {noun}")}
    slots["weather"], slots["weather_line"] = rng.choice(list(words.WEATHER.items()))
    slots["worked"], slots["boss"] = rng.choice(list(words.JOBS.items()))
    slots["fear"], (slots["fear_moment"], slots["fear_truth"]) = rng.choice(list(words.FEARS.items()))
    skill, (fail, tip, win) = rng.choice(list(words.SKILLS.items()))
    slots |= {"skill": skill, "skill_fail": fail, "skill_tip": tip, "skill_win": win}
    slots["goal"], slots["goal_view"] = rng.choice(list(words.JOURNEYS.items()))
    slots["baby"], slots["mother"] = rng.choice(list(words.BABIES.items()))
    slots["cry"], slots["cry_words"] = rng.choice(list(words.CRIES.items()))
    creature, (trouble, rescue, payback) = rng.choice(list(words.DEBTS.items()))
    slots |= {"creature": creature, "debt_trouble": trouble, "debt_rescue": rescue,
              "debt_return": payback}
    slots["plant"], slots["plant_end"] = rng.choice(list(words.PLANTS.items()))
    slots["treasure"], slots["treasure_use"] = rng.choice(list(words.TREASURES.items()))
    slots["fragile"], slots["owner"] = rng.choice(list(words.BREAKABLES.items()))
    slots["contest"], slots["contest_prep"] = rng.choice(list(words.CONTESTS.items()))
    slots["monster"], slots["monster_why"] = rng.choice(list(words.MONSTERS.items()))
    slots |= {"food": rng.choice(words.FOODS), "dish": rng.choice(words.DISHES),
              "ingredient": rng.choice(words.INGREDIENTS), "hiding": rng.choice(words.HIDING_PLACES),
              "peril": rng.choice(words.PERILS),
              "everyone": rng.choice(["all the neighbours", "all the others", "the whole family",
                                      "everyone", "friends from near and far"])}
    return slots


def clashes(hero, helper, slots):
    """True if two different characters of the story would go by the same noun."""
    nouns = {hero.noun, helper.noun}
    return any(slots[key] in nouns for key in ("boss", "creature", "monster", "baby", "mother", "owner"))


def helper_slots(rng, plot, helper, slots):
    """The helper's words; in some plots the helper is a creature of the plot itself."""
    own = PLOTS[plot].get("helper")
    if own:
        helper = Character("animal", slots[own], rng.choice(words.HELPER_ADJECTIVES), "he")
    forms = PRONOUNS[helper.gender]
    return {"f": helper.name, "fintro": helper.introduction, "fhe": forms["he"],
            "fhim": forms["him"], "fhis": forms["his"]}


def choose_opening(rng, plot, hero, chat):
    """Pick an opening; returns it and whether it already tells the plot's first step."""
    known = hero.sort == "child" or not hero.proper
    roll = rng.random()
    if known and PLOTS[plot].get("owner") and roll < 0.4 and not chat:
        return pick_weighted(rng, OWNER_OPENINGS), True
    if known and plot == "wish" and roll < 0.3 and not chat:
        return pick_weighted(rng, WISHER_OPENINGS), True
    if roll < (0.15 if chat else 0.35):
        pool = NAMED_OPENINGS if hero.proper else PLAIN_OPENINGS
        fitting = [entry for entry in pool if known or "{hero" in entry[1]]
        return pick_weighted(rng, fitting), False
    return pick_weighted(rng, OPENINGS), False


def pick_weighted(rng, entries):
    """Draw from (weight, wording) pairs."""
    return rng.choices([text for _, text in entries], [weight for weight, _ in entries])[0]


def choose_plot(rng, water, chat):
    """A plot that fits the hero's element; chats ask more often for stories about a thing."""
    fitting = [name for name, plot in PLOTS.items() if plot.get("water") or not water]
    weights = {"wish": 3, "lost": 2} if chat else {}
    return rng.choices(fitting, [weights.get(name, 1) for name in fitting])[0]


def make_story(rng, chat=False, hero=None):
    """Tell one story, about a given hero if there is one."""
    hero = hero or make_hero(rng)
    water = hero.sort == "water"
    plot = choose_plot(rng, water, chat)
    helper = make_helper(rng, hero)
    slots = plot_slots(rng)
    while clashes(hero, helper, slots):
        slots, helper = plot_slots(rng), make_helper(rng, hero)
    places = words.WATER_PLACES if water else words.PLACES
    place_asked, (slots["place"], slots["there"]) = rng.choice(list(places.items()))
    slots |= hero.slots() | helper_slots(rng, plot, helper, slots)
    opening, told = choose_opening(rng, plot, hero, chat)
    steps = [rng.choice(wordings) for wordings in PLOTS[plot]["steps"]]
    parts = [opening] + steps[1 if told else 0:]
    if rng.random() < 0.8 and plot != "lullaby":
        parts.append(choose_ending(rng, parts))
    text = polish(" ".join(fill_part(part, slots) for part in parts))
    return Story(text, plot, hero, place_asked, slots)


def choose_ending(rng, parts):
    """An ending that names the helper only if the story did."""
    has_helper = "{fintro}" in " ".join(parts) or "{creature}" in " ".join(parts) \
        or "{monster}" in " ".join(parts)
    return rng.choice([text for text in ENDINGS if has_helper or "{f}" not in text])


def fill_part(wording, slots):
    """Fill the slots of one wording; {H} and {He} are capitalised forms."""
    capitals = {"H": capitalise(slots["h"]), "He": capitalise(slots["he"])}
    return wording.format(**slots, **capitals)


def fix_articles(text):
    """Turn "a owl" into "an owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiou])(?!unicorn)", r"\1n ", text)


def polish(text):
    """Repair articles, and start sentences and quotes with a capital letter."""
    text = fix_articles(text)
    text = re.sub(r'((?:^|[.!?] |[.]" )"?)([a-z])', lambda m: m[1] + m[2].upper(), text)
    return re.sub(r'((?:^| )")([a-z])', lambda m: m[1] + m[2].upper(), text)


def capitalise(text):
    """Upper-case the first letter only."""
    return text[:1].upper() + text[1:]


def main():
    """Print samples of plain stories and chats."""
    from chats import make_chat
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(4):
        print(make_story(rng).text, end="\n\n")
    for _ in range(8):
        for turn in make_chat(rng):
            print(f"{turn['role']}: {turn['content']}")
        print()


if __name__ == "__main__":
    main()
