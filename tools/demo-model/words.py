"""Word lists of the story grammar: who, where, what and what for."""

GIRLS = """Lily Mia Anna Rosa Nora Ella Zoe Ruby Clara Ida Maya Lucy Emma Greta Hana Ivy Sara June
Tilda Wren Molly Olive Penny Daisy Stella Lena Amy Bella Fern Alma Kate Lola Nina Poppy Sofia Vera
Elsa Martha Yara Zara""".split()
BOYS = """Tom Ben Max Leo Finn Sam Oscar Jack Hugo Noah Otto Paul Emil Theo Luca Milo Felix Anton
Peter Jonas Omar Ravi Tim Will Adam Karl Dan Eli Bruno George Henry Ian Jim Ken Nils Rudi Simon
Victor Yuri Arlo""".split()
PET_NAMES = """Pip Dot Rusty Bo Momo Tiki Fern Coco Nibbles Bramble Hazel Pepper Biscuit Mossy
Pebble Button Cricket Ginger Waffle Sunny Smoky Tumble Willow Patch Bean Nutmeg Misty Plum Clover
Juniper Zigzag Bubbles Twig Acorn Toffee Rumble Flicker Snow Dusty Berry""".split()
# Syllables of invented names: consonants, vowels, and how a syllable may close.
NAME_ONSETS = "b br c ch d dr f fl g gr h j k kr l m n p qu r s sh st t th tr v w x y z".split()
NAME_VOWELS = "a a e e i i o o u ai ea ei ia io".split()
NAME_CODAS = ["", "", "", "n", "l", "r", "s", "x", "m", "t", "nd", "ss", "k"]

ANIMALS = """fox owl rabbit mouse bear hedgehog squirrel cat dog frog duck goat sheep pony cow pig
hen goose crow sparrow robin badger beaver otter mole wolf deer lion tiger elephant monkey giraffe
zebra camel panda koala kangaroo penguin turtle snail beetle ant bee butterfly ladybug spider
caterpillar grasshopper lizard snake parrot peacock eagle swan stork donkey horse bull moose raccoon
skunk hamster bat chipmunk hippo rhino crocodile kitten puppy lamb duckling""".split()
WATER_ANIMALS = "fish whale dolphin seal crab octopus starfish shark seahorse jellyfish goldfish walrus".split()
FANTASY = "dragon giant troll unicorn fairy robot dinosaur ghost monster elf gnome snowman".split()
FOLK = {  # adult or unusual people, with the pronoun they take ("any" = either)
    "king": "he", "queen": "she", "prince": "he", "princess": "she", "wizard": "he", "witch": "she",
    "knight": "any", "pirate": "any", "baker": "any", "farmer": "any", "fisherman": "he",
    "sailor": "any", "gardener": "any", "tailor": "any", "shepherd": "any", "clockmaker": "any",
    "painter": "any", "astronaut": "any", "teacher": "any", "cook": "any", "miller": "any",
    "juggler": "any", "shoemaker": "any", "postman": "he", "inventor": "any", "grandmother": "she",
    "grandfather": "he", "captain": "any", "doctor": "any", "musician": "any",
}
HERO_ADJECTIVES = "little small young brave shy curious kind clever happy quiet cheerful gentle funny sleepy".split()
HELPER_ADJECTIVES = "kind old wise friendly gentle clever cheerful big tiny funny".split()

COLOURS = "red blue green yellow white purple orange golden silver brown pink black".split()
LOOKS = "little shiny old tiny big new pretty striped round wooden".split()
THINGS = {  # a thing, and what its owner does with it
    "kite": "fly it high above the hills", "boat": "sail it on the water",
    "ball": "throw it up into the sky", "drum": "play it every evening",
    "hat": "wear it on sunny days", "scarf": "wear it when the wind was cold",
    "lantern": "light it when the night came", "bell": "ring it every morning",
    "book": "read it under a tree", "key": "open the old garden gate",
    "map": "look for far places on it", "flute": "play soft songs on it",
    "blanket": "sleep under it at night", "bucket": "carry water in it",
    "wagon": "pull it up and down the hill", "basket": "fill it with berries",
    "pot": "cook warm soup in it", "ring": "wear it at the spring dance",
    "umbrella": "walk under it in the rain", "cup": "drink sweet tea from it",
    "coat": "wear it in the snow", "sled": "ride it down the snowy hill",
    "swing": "swing on it all day long", "doll": "tell it secrets at night",
    "whistle": "blow it and call all the birds", "box": "keep treasures in it",
    "chair": "sit on it and watch the clouds", "clock": "listen to it tick at night",
    "mirror": "make funny faces in it", "balloon": "walk with it through the streets",
    "guitar": "play happy songs on it", "bicycle": "ride it down the long road",
    "feather": "wear it on a hat", "shell": "hear the sea in it",
    "pillow": "dream sweet dreams on it", "spoon": "stir the soup with it",
    "paintbrush": "paint the whole world with it", "crown": "wear it for one day",
    "train": "let it run around the table", "puppet": "make it dance for the children",
    "telescope": "look at the stars with it", "tent": "sleep in it under the stars",
}

PLACES = {  # how a story asks for it: (first mention, later mention)
    "a small village": ("in a small village", "in the village"),
    "a forest": ("in a deep forest", "in the forest"),
    "the sea": ("by the sea", "by the sea"),
    "a mountain": ("on a high mountain", "on the mountain"),
    "a river": ("beside a wide river", "beside the river"),
    "a farm": ("on a sunny farm", "on the farm"),
    "a castle": ("in an old castle", "in the castle"),
    "a meadow": ("in a green meadow", "in the meadow"),
    "an island": ("on a small island", "on the island"),
    "a garden": ("in a quiet garden", "in the garden"),
    "a mill": ("in an old mill", "at the mill"),
    "a lighthouse": ("in a tall lighthouse", "at the lighthouse"),
    "the desert": ("at the edge of the desert", "in the desert"),
    "the snow": ("in a land full of snow", "in the snow"),
    "the jungle": ("in the warm jungle", "in the jungle"),
    "a big city": ("in a big city", "in the city"),
    "a valley": ("in a green valley", "in the valley"),
    "a lake": ("near a clear lake", "at the lake"),
    "a hill": ("on a windy hill", "on the hill"),
    "a cave": ("in a cosy cave", "at the cave"),
    "a harbour": ("near a busy harbour", "at the harbour"),
    "an orchard": ("in an apple orchard", "in the orchard"),
    "a swamp": ("at the edge of a swamp", "in the swamp"),
    "a tower": ("in a tall tower", "at the tower"),
    "a pond": ("beside a little pond", "at the pond"),
    "a town": ("in a little town", "in the town"),
    "a cottage": ("in a cottage near the woods", "at the cottage"),
    "the moon": ("on the moon", "on the moon"),
    "a ship": ("on an old ship", "on the ship"),
    "a tree house": ("in a tree house", "at the tree house"),
}
WATER_PLACES = {
    "the sea": ("in the deep blue sea", "in the sea"),
    "the ocean": ("in the wide ocean", "in the ocean"),
    "a lake": ("in a clear lake", "in the lake"),
    "a bay": ("in a warm bay", "in the bay"),
    "a coral reef": ("in a bright coral reef", "at the reef"),
}

WEATHER = {  # an adjective for the day, and a sentence that fits it
    "sunny": "the sun was warm and the sky was blue", "rainy": "soft rain fell all around",
    "windy": "the wind sang loudly", "snowy": "snow covered everything like a white blanket",
    "foggy": "thick fog hid the whole world", "cold": "there was ice on every leaf",
    "warm": "the air smelled of flowers", "cloudy": "grey clouds hung low in the sky",
    "bright": "the birds were singing", "quiet": "nothing moved at all",
}
FOODS = """bread soup apples cookies pancakes porridge cheese honey cake berries pie nuts plums
noodles carrots""".split()
DISHES = "pie cake soup stew bread pudding tart".split()
INGREDIENTS = "honey apples salt butter sugar carrots milk berries nuts cinnamon".split()
HIDING_PLACES = """under a bush|behind a big stone|inside a hollow tree|under the old bridge|in the tall
grass|behind the well|under a pile of leaves|between two roots|next to the fence|in an empty
basket""".replace("\n", " ").split("|")

JOBS = {  # work a hero can do: (what was done, who gave the work)
    "swept the floor": "miller", "carried water": "baker", "picked apples": "farmer",
    "washed the windows": "tailor", "fed the chickens": "farmer", "stacked wood": "carpenter",
    "pulled weeds": "gardener", "mended nets": "fisherman", "polished the bells": "clockmaker",
    "delivered letters": "postman", "watered the flowers": "gardener", "stirred the soup": "cook",
    "counted the sheep": "shepherd", "painted the fence": "carpenter",
}
FEARS = {  # fear: (the moment it must be faced, what the hero finds out)
    "the dark": ("one night all the lamps went out", "the dark was only a blanket for the stars"),
    "thunder": ("one evening a storm came up", "thunder was only the sky playing a drum"),
    "deep water": ("one day there was no bridge left and everybody had to cross the water",
                   "the water could carry anyone who stayed calm"),
    "high places": ("one day a baby bird sat on a high wall and could not come down",
                    "the world looked beautiful from above"),
    "loud noises": ("one day a great parade came by", "the loud noises were only music and laughter"),
    "being alone": ("one day everyone else had gone away", "a quiet hour could be a good friend"),
    "the wind": ("one day the wind shook every door", "the wind only wanted someone to play with"),
    "shadows": ("one evening a huge shadow stood on the wall", "it was only the shadow of a tiny moth"),
}
SKILLS = {  # skill: (how it goes wrong, the helper's advice, how it works at last)
    "swim": ("sank like a stone", "Lie on your back and breathe slowly", "swam all the way across"),
    "sing": ("sounded like a rusty door", "Sing softly first and listen", "sang like a bell"),
    "dance": ("fell over and landed in the mud", "Count to three and feel the music",
              "danced until the moon came up"),
    "whistle": ("made no sound at all", "Make a small round mouth and blow gently",
                "whistled a whole song"),
    "bake": ("burned everything black", "Use a small fire and wait", "baked the sweetest bread"),
    "climb": ("slid down again and again", "Look up and take one small step at a time",
              "climbed to the very top"),
    "read": ("mixed up all the letters", "Say each letter slowly, one by one",
             "read a whole book aloud"),
    "paint": ("spilled the paint on the floor", "Look first, and then use one colour at a time",
              "painted a wonderful picture"),
    "juggle": ("dropped every ball", "Start with only two balls", "juggled three balls at once"),
    "skate": ("slipped and bumped into a snowman", "Bend your knees a little",
              "glided over the ice"),
    "draw": ("drew only a big black blot", "Start with a circle and take your time",
             "drew a picture of everyone"),
    "tell jokes": ("forgot the funny part", "Think of what makes you laugh",
                   "made everybody laugh out loud"),
    "play the flute": ("scared all the birds away", "Hold it lightly and blow like a soft wind",
                       "played so well that the birds came back"),
    "count": ("always forgot the number seven", "Count the things you love", "counted to one hundred"),
}
JOURNEYS = {  # goal of a journey: what is found there
    "the sea": "the waves were shining like silver",
    "the end of the rainbow": "there was a field of flowers in every colour",
    "the top of the mountain": "the whole world lay below like a green carpet",
    "the big city": "a thousand windows were shining in the night",
    "the first snow": "white flakes were dancing down from the sky",
    "the northern lights": "green light was waving across the sky",
    "the oldest tree in the world": "its leaves were whispering very old songs",
    "the place where the sun sleeps": "the sun was sinking into a bed of red clouds",
    "the great waterfall": "the water was roaring and a rainbow stood above it",
    "the valley of butterflies": "a million wings were moving in the light",
}
BABIES = {  # a lost young animal and its mother
    "duckling": "duck", "kitten": "cat", "lamb": "sheep", "puppy": "dog", "chick": "hen",
    "fawn": "deer", "bear cub": "bear", "piglet": "pig", "foal": "horse", "baby owl": "owl",
    "baby elephant": "elephant", "wolf cub": "wolf",
}
CRIES = {"small voice": "Please help me", "soft cry": "I want to go home", "quiet sob": "I am lost"}
DEBTS = {  # creature: (its trouble, how it is freed, how it pays back)
    "bird": ("was caught in a net", "opened the net", "flew ahead and showed the way home"),
    "mouse": ("was stuck in a jar", "turned the jar over", "bit through the rope with its sharp teeth"),
    "bee": ("had fallen into a puddle", "lifted it out with a leaf", "called all its sisters to help"),
    "ant": ("was trapped under a stone", "moved the stone away", "brought a thousand friends to help"),
    "crow": ("had a thorn in its foot", "pulled the thorn out", "brought a long branch to hold on to"),
    "goat": ("was stuck in the mud", "pulled it out", "pulled with all its might"),
    "firefly": ("was caught in a spider web", "freed it very gently", "lit up the whole path"),
    "horse": ("had lost a shoe", "fetched a new shoe", "came running like the wind"),
}
PERILS = ("fell into a deep hole", "got lost in the fog", "got stuck between two rocks",
          "lost the way in the dark", "could not get out of the mud")
PLANTS = {  # what is sown: what it becomes
    "sunflower": "it was taller than the house", "pumpkin": "it was as big as a wagon",
    "apple tree": "it was full of sweet red apples", "bean": "it climbed right up to the clouds",
    "strawberry": "its berries were as sweet as sugar", "rose": "it smelled better than anything",
    "melon": "it was as round as the moon", "cherry tree": "it was white with flowers",
    "carrot": "it was so big that nobody could pull it out alone", "tulip": "it glowed like a little lamp",
}
TREASURES = {  # what lies in an old chest: what is done with it
    "gold coins": "bought warm coats for everyone", "old letters": "read the letters aloud by the fire",
    "flower seeds": "planted them along the road", "tiny bells": "hung a bell on every door",
    "glass stars": "hung the stars in every window", "old toys": "gave a toy to every child",
    "bright stones": "gave one stone to every friend", "song books": "sang the songs together",
}
BREAKABLES = {"vase": "grandmother", "window": "baker", "teapot": "queen", "lamp": "tailor",
              "flowerpot": "gardener", "bowl": "cook", "clock": "clockmaker", "cup": "teacher",
              "fence": "farmer", "violin": "musician"}
CONTESTS = {"race": "ran as fast as the wind", "singing contest": "practised every morning",
            "boat race": "built a fast little boat", "baking contest": "baked day and night",
            "dancing contest": "danced all day long", "snowball contest": "made a hundred snowballs"}
MONSTERS = {  # who hides in the cave: why it roars
    "dragon": "had a sore tooth", "giant": "could not find his other shoe", "troll": "had a bad cold",
    "bear": "was hungry and all alone", "monster": "was afraid of the dark",
    "lion": "had a thorn in his paw", "ghost": "had nobody to play with",
}
