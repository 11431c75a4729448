"""Chat samples: requests for stories with fitting answers, small talk, and polite refusals."""

import re

import words
from grammar import fix_articles, hero_of_noun, make_story, polish
from plots import PLOTS

LEADS = ["Tell me a story about {}", "Write a story about {}", "Tell me a tale about {}",
         "Can you tell me a story about {}", "Could you write a story about {}",
         "I want a story about {}", "I would like a story about {}", "Please tell me a story about {}",
         "A story about {}", "Write a short story about {}", "Tell me something about {}",
         "Tell a story about {}", "Can you write me a story about {}", "Story about {}",
         "Give me a story about {}", "Make up a story about {}", "Do you know a story about {}",
         "Tell me a bedtime story about {}", "Write me a little story about {}",
         "Can you tell me a tale about {}", "How about a story about {}", "{}"]
AGAIN_LEADS = ["Now one about {}", "Another one about {}", "And a story about {}", "Make it about {}",
               "Now tell me a story about {}", "Can I have one about {}", "One more about {}"]
OPEN_REQUESTS = ["Tell me a story", "Write a story", "Can you tell me a story", "A story please",
                 "I want a story", "Tell me something nice", "Tell me a bedtime story",
                 "Write a short story", "Can I have a story", "I cannot sleep", "I am bored",
                 "Tell me a tale", "Story please", "Surprise me", "Start", "Go on", "Yes", "Yes please",
                 "Write something", "I am sad", "Tell me a fairy tale"]
AGREEMENTS = ["Yes", "Yes please", "Sure", "Ok", "Okay", "Please do", "Go on", "Yes, tell me", "Yes, I would",
              "Of course", "Why not", "That sounds nice", "Tell me", "Yes, tell me that story"]
MORE_REQUESTS = ["Another one", "Tell me another story", "One more", "Another story please", "Again",
                 "More", "Can you tell me another one", "One more story please", "Go on", "Next"]

SMALL_TALK = [
    (["Hello", "Hi", "Hey", "Hello there", "Good morning", "Good evening", "Hi there", "Hallo", "Good day"],
     ["Hello! Shall I tell you a story about {}?", "Hello! I know many little stories. Would you like one about {}?",
      "Hi! It is nice to meet you. Do you want to hear a story about {}?"]),
    (["Who are you", "What are you", "What is your name", "Are you a robot", "Introduce yourself",
      "Are you an AI", "Who made you", "Are you human"],
     ["I am a very small language model that tells little stories.",
      "I am a tiny story teller. I only know little stories.",
      "I am a little model, and I tell stories. Would you like one about {}?"]),
    (["What can you do", "Help", "How can you help me", "What do you know", "What can I ask",
      "What do you do", "How does this work", "What can I ask you"],
     ["I can tell little stories. Ask me for a story about {}.",
      "I tell short stories about animals, children and wishes. Try: Tell me a story about {}."]),
    (["Thank you", "Thanks", "Thank you very much", "Thanks a lot", "That was nice", "Nice", "Great",
      "I like it", "Cool", "Good story", "That was a lovely story", "Wow", "Well done", "Good", "Ok"],
     ["You are welcome! Shall I tell you another story?", "I am glad you liked it.",
      "Thank you! I also know a story about {}."]),
    (["Bye", "Goodbye", "Good night", "See you", "See you tomorrow", "Bye bye"],
     ["Good night and sweet dreams!", "Goodbye! Come back for another story."]),
    (["How are you", "How do you do", "How are you today", "Are you ok"],
     ["I am fine, thank you. I have a story about {} in my mind.",
      "Very well, thank you! Would you like to hear a story?"]),
    (["No", "No thanks", "Stop", "I do not want a story", "Be quiet", "Not now"],
     ["That is fine. Just ask me when you want a story.", "All right. I will wait here."]),
]

REFUSALS = ["I only know little stories. Shall I tell you one about {}?",
            "I am sorry, I only tell little stories. Would you like one about {}?",
            "That is too hard for me. I only know little stories, for example about {}."]
SUBJECTS = """France Germany Italy Japan China India Spain Brazil Canada Egypt Mexico London Paris
Berlin America Russia Africa Europe Python Java Rust Linux football chess history physics math
chemistry biology politics music money science computers internet energy gravity electricity
philosophy democracy cooking yoga cars planes medicine law""".split() + [
    "quantum mechanics", "the economy", "the weather", "the president", "the news", "the war",
    "the universe", "a neural network", "a computer", "a virus", "a black hole", "an atom", "a bank",
    "a car", "the stock market", "the United States", "New York", "machine learning"]
OFF_TOPIC = ["What is the capital of {s}", "Who is the president of {s}", "What is {s}", "Explain {s}",
             "How does {s} work", "Why is {s} important", "Write code in {s}", "Write a program in {s}",
             "Tell me the history of {s}", "How many people live in {s}", "What do you think about {s}",
             "Translate this to {s}", "What is {n} plus {m}", "What is {n} times {m}", "{n} + {m}",
             "{n} * {m} = ?", "Solve {n} x = {m}", "Calculate {n} - {m}", "How old is {s}",
             "What is the weather in {s}", "Who invented {s}", "When was {s} founded", "What time is it",
             "What day is it", "Where am I", "What is the meaning of life", "Why is the sky blue",
             "Give me a recipe for {d}", "How do I make {d}", "How do I fix my {t}", "Where can I buy a {t}",
             "What is the price of a {t}", "Write an email to my boss", "Write an essay about {s}",
             "Summarize this text", "Who won the game", "What is the best {t}", "Give me a list of {s}",
             "Is {s} good", "Do you like {s}", "Where is {s}", "How far is it to {s}", "Define {s}",
             "What does {s} mean", "Fix this bug", "Write a function that sorts a list",
             "Write a poem about {s}", "How much is {n}", "What is the tallest mountain",
             "Who wrote this book", "How tall is the tower", "Can you help me with {s}",
             "Tell me about {s}", "Which is bigger, {n} or {m}", "Compare {s} and {s2}",
             "Should I learn {s}", "What is the difference between {s} and {s2}", "Open the window",
             "Turn on the light", "Play some music", "Call my mother", "Search the web for {s}"]


def restyle(rng, request):
    """Give a request one of the ways in which people type: case, please, punctuation."""
    request = request[0].upper() + request[1:]
    if rng.random() < 0.15 and "lease" not in request:
        request = rng.choice([f"Please {request[0].lower()}{request[1:]}", f"{request}, please",
                              f"{request} please"])
    question = request.split()[0].lower() in {
        "can", "could", "who", "what", "how", "why", "where", "when", "do", "did", "is", "are", "which", "should"}
    roll = rng.random()
    if roll < 0.65 and request[-1] not in "?=":
        request += "?" if question else rng.choice([".", ".", ".", "!"])
    if rng.random() < 0.2:
        request = request.lower()
    return request


def hero_request(rng, story):
    """Describe the hero: "a fox", "a little fox named Rusty", "Tom and Lily"."""
    hero = story.hero
    if hero.sort == "pair":
        return rng.choice([hero.introduction, hero.proper, hero.noun])
    options = [f"a {hero.noun}"] * 3 + [hero.kind]
    if hero.proper:
        called = f"a {hero.noun} {rng.choice(['named', 'called', 'named'])} {hero.proper}"
        options += [called] * 3 + [hero.introduction]
        options += [hero.proper] if hero.sort == "child" else [f"{hero.proper} the {hero.noun}"]
    return rng.choice(options)


def subject_request(rng, story):
    """What a story is asked to be about: its hero, place, plot, or several of these."""
    plot = PLOTS[story.plot]
    roll = rng.random()
    if roll < 0.25:
        subject = hero_request(rng, story)
    elif roll < 0.65:
        subject = f"{hero_request(rng, story)} {rng.choice(plot['about'])}"
    elif roll < 0.77:
        subject = f"{hero_request(rng, story)} {rng.choice([story.slots['place'], story.slots['there']])}"
    elif roll < 0.87:
        subject = rng.choice([story.place_asked, "life " + story.slots["place"]])
    elif roll < 0.92:
        subject = f"{hero_request(rng, story)} and {rng.choice(plot['topic'])}"
    else:
        subject = rng.choice(plot["topic"])
    return subject.format(**story.slots)


def story_turn(rng, leads, open_requests):
    """A request and a story that answers it."""
    story = make_story(rng, chat=True)
    roll = rng.random()
    if roll < 0.12:
        request = restyle(rng, rng.choice(open_requests))
    elif roll < 0.18:  # the user types the beginning of a story
        beginning = story.text.split()
        request = " ".join(beginning[:rng.randint(2, 9)])
    else:
        subject = fix_articles(subject_request(rng, story))
        request = restyle(rng, rng.choice(leads).format(subject))
    return turns(request, story.text), story


def turns(user, assistant):
    """One exchange in the usual message form."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def teaser(rng):
    """Something the model could tell about."""
    noun = rng.choice(words.ANIMALS + words.FANTASY)
    return fix_articles(f"a {rng.choice(['little ', 'brave ', ''])}{noun}")


def talk_turn(rng):
    """A greeting, a question about the model, a thank-you."""
    requests, answers = rng.choice(SMALL_TALK)
    return turns(restyle(rng, rng.choice(requests)), rng.choice(answers).format(teaser(rng)))


def refusal_turn(rng):
    """A request outside of what a story teller can do."""
    first, second = rng.sample(SUBJECTS, 2)
    request = rng.choice(OFF_TOPIC).format(s=first, s2=second, n=rng.randint(1, 999), m=rng.randint(1, 99),
                                           d=rng.choice(words.DISHES), t=rng.choice(list(words.THINGS)))
    return turns(restyle(rng, request), rng.choice(REFUSALS).format(teaser(rng)))


def question_turn(rng, story):
    """A question about the story just told."""
    question, answer = PLOTS[story.plot]["fact"]
    options = [(question, answer), ("Where did {h} live?", "{h} lived {place}."),
               ("Who was the story about?", "It was about {hero}.")]
    if story.slots["place"] not in story.text.lower():
        options.pop(1)
    question, answer = rng.choice(options)
    return turns(restyle(rng, polish(question.format(**story.slots))),
                 polish(answer.format(**story.slots)))


def make_chat(rng):
    """A chat of one to four exchanges, as a list of messages."""
    roll = rng.random()
    if roll < 0.56:
        return story_turn(rng, LEADS, OPEN_REQUESTS)[0]
    if roll < 0.66:
        return talk_turn(rng)
    if roll < 0.75:
        return refusal_turn(rng)
    messages = []
    for _ in range(rng.randint(2, 4)):
        messages += next_turn(rng, messages)
    return messages


def next_turn(rng, messages):
    """Any exchange that may follow what was said so far."""
    offer = re.search(r"about an? (little |brave )?(\w+)", messages[-1]["content"]) if messages else None
    if offer and offer[2] in words.ANIMALS + words.FANTASY and rng.random() < 0.5:
        hero = hero_of_noun(rng, offer[2], (offer[1] or "").strip())
        return turns(restyle(rng, rng.choice(AGREEMENTS)), make_story(rng, chat=True, hero=hero).text)
    roll = rng.random()
    if roll < 0.55:
        leads, more = (AGAIN_LEADS + LEADS, MORE_REQUESTS + OPEN_REQUESTS) if messages else (LEADS, OPEN_REQUESTS)
        exchange, story = story_turn(rng, leads, more)
        return exchange + question_turn(rng, story) if rng.random() < 0.4 else exchange
    return talk_turn(rng) if roll < 0.8 else refusal_turn(rng)
