"""Words to spell.   in: nothing   out: WORDS, HELD_OUT_WORDS, a compound of two words
who calls: spelling, held_out, pages

The held-out words stand in no text of any stage: they are asked for the first time at the end.
Their pieces are known, because many other words share them.
Read next: spelling.py (what is asked about the words).
"""

from nanochat.corpus.world.dice import Dice

__all__ = ["HELD_OUT_WORDS", "WORDS", "made_up_word"]

HELD_OUT_WORDS: tuple[str, ...] = tuple(
    """
    anchor barrel beacon blanket bracket buckle candle carpet cactus charcoal cobbler crater
    dentist dragon falcon feather ferret fiddle flannel fossil gallop ginger glimmer goblet
    hammer harness jacket jungle kernel ladder locker magnet mantle marble meteor mitten mustard
    napkin nugget oyster paddle pepper pilgrim pillow planet pocket puddle quiver ribbon rocket
    saddle scatter shelter silver snapper sparkle spindle stencil temper thimble timber tractor
    trumpet vessel walnut whisker zipper
    """.split()
)

WORDS: tuple[str, ...] = tuple(
    """
    able about above accept account ache acorn across act actor add adult advice afraid after
    again age agree ahead aim air airport alarm album alive alley allow almond almost alone
    along alphabet also always amazing amber among amount amuse angel anger angle ankle answer
    ant any apart appear apple apricot apron arch area arm armchair army around arrive arrow art
    artist ash ask asleep atlas attic aunt author autumn awake away axe baby back bacon badge
    badger bag bake baker balance ball balloon bamboo banana band banner bark barley barn basic
    basil basin bat batch bath battery bay beach bead beak beam bean bear beard beast beat
    beaver become bed bedroom bee beef beetle before begin behave behind believe bell belong
    below belt bench bend berry beside best better between beyond bicycle big bike bill bind
    birch bird birthday bison bite bitter black blade blank blaze blend bless blind blink block
    bloom blossom blouse blow blue bluebell blush board boast boat body boil bold bolt bone
    bonnet book boost boot border born borrow both bottom bounce bow bowl box boy brain brake
    branch brand brass brave bread break breath breeze brick bride bridge brief bright bring
    broad broken bronze brook broom broth brother brown brush bubble bud budget bug build bulb
    bull bumble bump bun bunch bundle bunny burn burrow bus bush busy butler butter button buy
    buzz cabbage cabin cable cage cake calf call calm camel camera camp canal canary canoe
    canvas canyon cap captain car caramel caravan card care careful cargo carrot carry cart
    carve case cash castle cat catch cattle cause cave ceiling celery cellar cement cent center
    cereal certain chain chair chalk chance change channel chapel chapter charm chart chase
    cheap check cheek cheer cheese cherry chess chest chew chicken chief child chimney chin chip
    choice choose chop chorus church cider cinema circle circus city clap class clay clean clear
    clerk clever cliff climb cloak clock close closet cloth cloud clover clown club clue coach
    coal coast coat cobweb coconut coffee coin cold collar collect colour comb come comet
    comfort common compass concert cook cookie cool copy coral cork corn corner correct cost
    cottage couch cough count country couple course court cousin cover cow cozy crab crack
    cradle craft crane crayon cream create creek crew cricket crisp crop cross crow crowd crown
    crumb crust cry crystal cube cuckoo cucumber cup cupboard curl curtain curve cushion custard
    custom cut cycle daily dairy daisy dam damp dance danger dare dark dash date daughter dawn
    day deal dear decide deck deep deer defend degree delight deliver dent depth desert design
    desk dessert detail dew dial diamond diary dice differ dig dinner dip direct dirt dish
    distant ditch dive divide dock doctor dog doll dolphin donkey door dot double dough dove
    down dozen draft drain draw drawer dream dress drift drill drink drip drive drop drum dry
    duck duckling dune during dust duty eager eagle ear early earn earth easel east easy eat
    echo edge effort egg eight either elbow elder elephant eleven elf else empty end energy
    engine enjoy enough enter equal error escape even evening event ever every exact example
    excite exit expect expert explain explore extra eye fable fabric face fact factory fade fair
    fairy faith fall false family famous fan fancy far farm farmer farther fast father fault
    favour fawn fear feast feed feel fellow fence fern ferry festival fetch fever few fiber
    field fig fight figure file fill film find fine finger finish fir fire firm first fish
    fisher fit five fix flag flame flash flat flavour fleet flight float flock flood floor flour
    flow flower fluff flute fly foam fog fold folk follow food foot forest forget fork form fort
    fortune forward fountain fox frame free freeze fresh friend fright frog front frost frown
    fruit fudge full fun funny fur future gadget gain galaxy game gander gap garage garden
    garlic garment gate gather gentle giant gift giggle giraffe girl give glad glance glass
    glide globe gloom glory glove glow glue goal goat gold golden good goose gorilla gown grain
    grand grape graph grass gravel gravy gray great green greet grin grip grocer ground group
    grove grow guard guess guest guide guitar gull gutter habit hail hair half hall halt ham
    hamster hand handle handy happen happy harbour hard hare harm harp harvest hasten hat hatch
    haul have hawk hay hazel head heal healthy heap hear heart heat heather heavy hedge hedgehog
    heel height hello helmet help helper hen herb herd hero heron herring hidden hide high hill
    hinge hint hip hire hive hobby hold hole holiday hollow holly home honest honey hood hook
    hop hope horn horse host hotel hour house hover huge human hum humble hundred hungry hunt
    hurry hut ice icicle icing idea igloo image imagine inch index indoor ink inner inquiry
    insect inside instant invent invite iris iron island itself ivory ivy jam jar jelly jewel
    jigsaw job jockey join joke jolly journal journey joy judge jug juggle juice juicy jump
    jumper junior just kayak keen keep kettle key kick kid kidney kind kindness king kingdom
    kiosk kitchen kite kitten knee kneel knife knight knit knock knot know koala label lace lad
    lady lagoon lake lamb lamp land lane lap large lark last late laugh laundry lava lavender
    law lawn layer lazy lead leaf leak lean leap learn leather leave ledge leek left leg legend
    lemon lend length lentil leopard less lesson letter lettuce level lever library lick lid
    life lift light lilac lily lime limit line linen link lion lip liquid list listen litter
    little live lively lizard load loaf lobby lobster local lock lodge lofty log lonely long
    look loop loose lorry lot loud lounge love lovely low loyal luck lucky lumber lump lunch
    lung machine mad magic magpie mail main make mammal manage mango manner manor many map maple
    march margin marine mark market marry marsh mask mason mast master mat match mate matter
    mattress maybe mayor maze meadow meal mean measure meat medal meet mellow melody melon melt
    member memory mend menu mercy merit merry mess message metal method middle might mild mile
    milk mill mind mine mineral minnow mint minute mirror misty mix model modern moment money
    monkey month mood moon moose more morning moss most moth mother motor mount mountain mouse
    mouth move much mud muddy muffin mug mule muscle museum music mussel must mystery nail name
    nanny narrow nation nature near neat neck nectar needle neighbor nephew nerve nest net never
    new news next nibble nice niece night nimble nine noble noise noodle noon normal north nose
    note nothing notice novel number nurse nut nutmeg oak oar oasis oat obey object ocean
    octopus odd offer office often oil old olive omelet once one onion only open opera orange
    orchard order organ other otter outdoor outside oval oven over owl own owner ox pack package
    pad page paint painter pair palace pale palm pan pancake panda panel pansy pantry paper
    parade parcel parent park parrot parsley part party pass past paste pasta pastry pasture
    patch path patient pattern pause pave paw pea peace peach peak peanut pear pearl pebble
    pedal peel pelican pen pencil penguin penny people perch perfect perhaps person petal phone
    photo piano pick pickle picnic picture pie piece pier pig pigeon pile pilot pin pinch pine
    pink pint pipe pirate pitch pizza place plaid plain plan plane plank plant plaster plate
    platter play player please plenty plot plough plug plum plump plus pod poem poet point polar
    pole polish polite pond pony pool poor poppy porch porter portion possible post poster pot
    potato pottery pouch pound pour powder power praise prefer present press pretty price pride
    primrose prince print prize problem produce promise proper proud prove public pull pulse
    pump pumpkin punch pupil puppet puppy pure purple purse push puzzle quack quaint quality
    quarrel quarry quarter queen quick quiet quill quilt quite quiz rabbit raccoon race rack
    radar radio radish raft rag rail railway rain rainbow raisin rake ram ramble ranch range
    ranger rapid rare rather rattle raven ravine raw reach read ready real reason recall receive
    recipe record red reed reef refer regard region relax remain remember remind repair repeat
    reply report rescue rest result return reward rhyme rice rich riddle ride rider ridge right
    ring rinse ripe ripple rise river road roar roast robe robin robot rock rod roll roof room
    rooster root rope rose rough round route row royal rub rubber ruby rug rule ruler rumble run
    rush rust rustle sack sad safe safety sail sailor salad salmon salt same sample sand sandal
    sandwich satin sauce saucer sausage save savour saw say scale scarf scene scent school
    science scissors scoop score scout screen screw scrub sea seal search season seat second
    secret section see seed seek seem select sell send senior sense serve set settle seven
    several shade shadow shake shallow shape share sharp shawl shed sheep sheet shelf shell
    shepherd shield shift shine ship shirt shiver shoe shop shore short shoulder shout shovel
    show shower shrub shut shy side sigh sign signal silence silk silly simple since sing single
    sink sister sit six size skate sketch ski skill skin skip skirt sky slate sled sleep sleepy
    sleeve sleigh slice slide slim slipper slope slow small smart smell smile smoke smooth snack
    snail snake sneeze snore snow snug soak soap soccer sock soda sofa soft soil soldier solid
    solve some song soon sorrow sort sound soup sour south space spade spare spark sparrow speak
    special speech speed spell spend spice spider spin spinach spiral spirit splash split sponge
    spoon sport spot spray spread spring sprout spruce square squash squeak squirrel stable
    stack stage stair stamp stand star start state station statue stay steady steam steel steep
    steeple stem step stew stick sticky still stir stitch stock stone stool stop store stork
    storm story stove straight strange straw stream street strike string stripe stroll strong
    student study stuff sturdy style subject such sudden sugar suit summer summit sun sunny
    sunset supper supply support suppose sure surface surprise swallow swan swarm sway sweater
    sweep sweet swift swim swing switch sword syrup system table tablet tadpole tail tailor take
    tale talent talk tall tame tangle tank tap tape target tart task taste tasty taxi tea teach
    teacher team teapot tear tease tell temple ten tender tennis tent terrace thank theater
    theme thick thin thing think thirsty thistle thorn thread three thrill throat throne through
    throw thumb thunder ticket tide tidy tie tiger tight tile till time tin tiny tip tire title
    toad toast toddler toe toffee together tomato tomorrow tongue tool tooth top topic torch
    tortoise total touch tour toward towel tower town toy trace track trade trail train tram
    travel tray treasure treat tree trench trial triangle tribe trick trim trip troll trolley
    trophy trouble trousers trout truck true trunk trust truth try tub tube tuck tug tulip
    tumble tune turf turkey turn turnip turtle twelve twenty twice twig twin twinkle twirl twist
    two type ugly umbrella uncle under uniform unit until upper upset urge use useful usual
    valley value van vanilla vapour vase vast vegetable veil vein velvet verse very vest veteran
    victory video view village vine violet violin visit voice volcano vote vowel voyage waffle
    wag wage wagon waist wait waiter wake walk wall wallet waltz wander want warm warn wash wasp
    waste watch water wave wax way weak wealth wear weasel weather weave web wedding weed week
    weigh welcome well west wet whale wharf wheat wheel whip whistle white whole wicker wide
    wife wild willow win wind window wing wink winner winter wipe wire wise wish witty wolf
    wonder wood wooden wool word work worker world worm worry worth wrap wreath wren wrist write
    writer wrong yard yarn yawn year yeast yellow yes yet yogurt yolk young zebra zero zigzag
    zone zoo
    """.split()
)

_SHORT_WORDS = tuple(word for word in WORDS if 3 <= len(word) <= 5)
_ALL_WORDS = frozenset(WORDS) | frozenset(HELD_OUT_WORDS)


def made_up_word(dice: Dice) -> str:
    """Two short words in one, such as `moonboat`; never one of the held-out words."""
    while True:
        word = dice.pick(_SHORT_WORDS) + dice.pick(_SHORT_WORDS)
        if word not in _ALL_WORDS:
            return word
