"""The 96 nouns of sticker scenes: code point, name, article, plural and class.

They are chosen by hand so that one drawing shows one object: no flags, faces of people, symbols, clocks or arrows, no
two drawings of the same object, no scenery around the object (this excludes boats, which are drawn with water).  The
24 classes, four nouns each, follow subgroups of the Unicode emoji list
(https://unicode.org/Public/emoji/latest/emoji-test.txt); the frog is counted among the reptiles.
"""

from typing import NamedTuple

NUMBERS = {2: "two", 3: "three", 4: "four"}


class Noun(NamedTuple):
    """One noun with its code point and class."""

    code_point: int
    name: str
    article: str
    plural: str
    kind: str

    def counted(self, count: int) -> str:
        """Returns the phrase for `count` objects, 1 to 4: "an owl", "two owls"."""
        return f"{self.article} {self.name}" if count == 1 else f"{NUMBERS[count]} {self.plural}"


NOUNS = (
    Noun(0x1F415, "dog", "a", "dogs", "mammal"),
    Noun(0x1F416, "pig", "a", "pigs", "mammal"),
    Noun(0x1F407, "rabbit", "a", "rabbits", "mammal"),
    Noun(0x1F418, "elephant", "an", "elephants", "mammal"),
    Noun(0x1F413, "rooster", "a", "roosters", "bird"),
    Noun(0x1F427, "penguin", "a", "penguins", "bird"),
    Noun(0x1F989, "owl", "an", "owls", "bird"),
    Noun(0x1F9A9, "flamingo", "a", "flamingos", "bird"),
    Noun(0x1F438, "frog", "a", "frogs", "reptile"),
    Noun(0x1F422, "turtle", "a", "turtles", "reptile"),
    Noun(0x1F40D, "snake", "a", "snakes", "reptile"),
    Noun(0x1F995, "dinosaur", "a", "dinosaurs", "reptile"),
    Noun(0x1F40B, "whale", "a", "whales", "sea animal"),
    Noun(0x1F41F, "fish", "a", "fish", "sea animal"),
    Noun(0x1F419, "octopus", "an", "octopuses", "sea animal"),
    Noun(0x1F980, "crab", "a", "crabs", "sea animal"),
    Noun(0x1F40C, "snail", "a", "snails", "bug"),
    Noun(0x1F98B, "butterfly", "a", "butterflies", "bug"),
    Noun(0x1F41D, "bee", "a", "bees", "bug"),
    Noun(0x1F41E, "ladybug", "a", "ladybugs", "bug"),
    Noun(0x1F335, "cactus", "a", "cactuses", "plant"),
    Noun(0x1F33B, "sunflower", "a", "sunflowers", "plant"),
    Noun(0x1F332, "tree", "a", "trees", "plant"),
    Noun(0x1F344, "mushroom", "a", "mushrooms", "plant"),
    Noun(0x1F34E, "apple", "an", "apples", "fruit"),
    Noun(0x1F34C, "banana", "a", "bananas", "fruit"),
    Noun(0x1F353, "strawberry", "a", "strawberries", "fruit"),
    Noun(0x1F34D, "pineapple", "a", "pineapples", "fruit"),
    Noun(0x1F955, "carrot", "a", "carrots", "vegetable"),
    Noun(0x1F346, "eggplant", "an", "eggplants", "vegetable"),
    Noun(0x1F951, "avocado", "an", "avocados", "vegetable"),
    Noun(0x1F9C5, "onion", "an", "onions", "vegetable"),
    Noun(0x1F354, "hamburger", "a", "hamburgers", "meal"),
    Noun(0x1F355, "pizza", "a", "pizzas", "meal"),
    Noun(0x1F32E, "taco", "a", "tacos", "meal"),
    Noun(0x1F968, "pretzel", "a", "pretzels", "meal"),
    Noun(0x1F369, "donut", "a", "donuts", "sweet"),
    Noun(0x1F382, "cake", "a", "cakes", "sweet"),
    Noun(0x1F9C1, "cupcake", "a", "cupcakes", "sweet"),
    Noun(0x1F36D, "lollipop", "a", "lollipops", "sweet"),
    Noun(0x2615, "cup", "a", "cups", "drink"),
    Noun(0x1F37A, "beer", "a", "beers", "drink"),
    Noun(0x1F37E, "bottle", "a", "bottles", "drink"),
    Noun(0x1FAD6, "teapot", "a", "teapots", "drink"),
    Noun(0x1F3E0, "house", "a", "houses", "building"),
    Noun(0x1F3F0, "castle", "a", "castles", "building"),
    Noun(0x26EA, "church", "a", "churches", "building"),
    Noun(0x1F3ED, "factory", "a", "factories", "building"),
    Noun(0x1F697, "car", "a", "cars", "vehicle"),
    Noun(0x1F6B2, "bicycle", "a", "bicycles", "vehicle"),
    Noun(0x1F69C, "tractor", "a", "tractors", "vehicle"),
    Noun(0x1F682, "train", "a", "trains", "vehicle"),
    Noun(0x2708, "airplane", "an", "airplanes", "aircraft"),
    Noun(0x1F681, "helicopter", "a", "helicopters", "aircraft"),
    Noun(0x1F680, "rocket", "a", "rockets", "aircraft"),
    Noun(0x1F6F8, "ufo", "a", "ufos", "aircraft"),
    Noun(0x1F388, "balloon", "a", "balloons", "event"),
    Noun(0x1F381, "gift", "a", "gifts", "event"),
    Noun(0x1F383, "pumpkin", "a", "pumpkins", "event"),
    Noun(0x1F380, "ribbon", "a", "ribbons", "event"),
    Noun(0x26BD, "soccer ball", "a", "soccer balls", "sport"),
    Noun(0x1F3C0, "basketball", "a", "basketballs", "sport"),
    Noun(0x1F94A, "boxing glove", "a", "boxing gloves", "sport"),
    Noun(0x1F3C6, "trophy", "a", "trophies", "sport"),
    Noun(0x1F3B2, "die", "a", "dice", "game"),
    Noun(0x1F9F8, "teddy bear", "a", "teddy bears", "game"),
    Noun(0x1FA81, "kite", "a", "kites", "game"),
    Noun(0x1F579, "joystick", "a", "joysticks", "game"),
    Noun(0x1F3B8, "guitar", "a", "guitars", "musical instrument"),
    Noun(0x1F3BA, "trumpet", "a", "trumpets", "musical instrument"),
    Noun(0x1F941, "drum", "a", "drums", "musical instrument"),
    Noun(0x1FA97, "accordion", "an", "accordions", "musical instrument"),
    Noun(0x1F457, "dress", "a", "dresses", "clothing"),
    Noun(0x1F462, "boot", "a", "boots", "clothing"),
    Noun(0x1F451, "crown", "a", "crowns", "clothing"),
    Noun(0x1F392, "backpack", "a", "backpacks", "clothing"),
    Noun(0x1F4BB, "laptop", "a", "laptops", "device"),
    Noun(0x260E, "telephone", "a", "telephones", "device"),
    Noun(0x1F4FB, "radio", "a", "radios", "device"),
    Noun(0x1F5A8, "printer", "a", "printers", "device"),
    Noun(0x1F4F7, "camera", "a", "cameras", "light and video"),
    Noun(0x1F56F, "candle", "a", "candles", "light and video"),
    Noun(0x1F4A1, "light bulb", "a", "light bulbs", "light and video"),
    Noun(0x1F3EE, "lantern", "a", "lanterns", "light and video"),
    Noun(0x1F528, "hammer", "a", "hammers", "tool"),
    Noun(0x1FA9A, "saw", "a", "saws", "tool"),
    Noun(0x1F9F2, "magnet", "a", "magnets", "tool"),
    Noun(0x1F6E1, "shield", "a", "shields", "tool"),
    Noun(0x1FA91, "chair", "a", "chairs", "household"),
    Noun(0x1F6AA, "door", "a", "doors", "household"),
    Noun(0x1F6BD, "toilet", "a", "toilets", "household"),
    Noun(0x1FAA3, "bucket", "a", "buckets", "household"),
    Noun(0x270F, "pencil", "a", "pencils", "office"),
    Noun(0x1F4D6, "book", "a", "books", "office"),
    Noun(0x2709, "envelope", "an", "envelopes", "office"),
    Noun(0x1F4CC, "pushpin", "a", "pushpins", "office"),
)

CLASSES = tuple(dict.fromkeys(noun.kind for noun in NOUNS))
"""Names of the semantic classes; a segmentation map holds 1 + the class index, and 0 for the background."""

CLASS_OF_NOUN = tuple(CLASSES.index(noun.kind) for noun in NOUNS)
"""The class index of every noun."""
