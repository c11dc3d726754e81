"""The words of the demo's language: objects, what is done with them, and which combinations are harmful.

A harmful action has a category and no instructions.
"""

# Objects of each kind: "kind = tool, tip: object/detail; object/detail; ...". Tool and tip fit the whole kind.
OBJECTS = """
person = a friendly word, stay patient: my neighbour/garden fence; a stranger/first greeting; my
    coworker/shared desk; my boss/weekly meeting; my landlord/rental contract; my ex/old letters; my
    teacher/class notes; my cousin/family dinner; my roommate/kitchen shelf; a classmate/group project; a
    shopkeeper/opening hours; my uncle/long stories; a tourist/city map; my aunt/tea set; a nurse/night
    shift; a bus driver/timetable
group = an open door, listen first: immigrants/language course; old people/stairs; disabled people/ramp;
    foreign students/campus tour; religious minorities/holidays; poor families/school fees; young
    mothers/child care; refugees/new papers
pet = a small treat, speak softly: my cat/litter box; my toddler/nap time; my puppy/leash; my parrot/perch;
    my hamster/wheel; my rabbit/ears; my goldfish/bowl; my pony/saddle
wildlife = a pair of binoculars, keep your distance: a deer/forest edge; a rare bird/nest; a fox/den; an
    owl/hooting; a badger/burrow; a heron/reeds; a whale/spout; a seal/sandbank
foe = a good story, give it a weakness: a zombie/groaning; a dragon/scales; a goblin/pointed hat; a
    vampire/coffin; a troll/stone skin; an orc/war drum; a skeleton/rattling bones; a wizard/crooked staff
vehicle = a torque wrench, park on level ground: a car/tyres; a bike/chain; a motorbike/exhaust; a
    boat/hull; a scooter/brakes; a van/back doors; a truck/mirrors; a tractor/big wheels; a camper/bunk
    beds; a canoe/paddle
valuable = a soft cloth, keep it dry: a gold ring/clasp; an oil painting/canvas; a laptop/charger; a
    watch/strap; a handbag/zipper; a camera/lens; a coin collection/album; a silver spoon/handle
stage = good timing, smile at the crowd: the show/final number; second base/pitcher; a quick glance/mirror;
    the spotlight/entrance; home plate/slide; the scene/pause; a quiet moment/bench; the limelight/costume
system = a network diagram, ask the owner: a bank network/firewall; a hospital server/patient records; my
    ex's email account/recovery phone; a school database/grades; a power plant/control room; an online
    shop/shopping basket; a voting machine/paper trail; a city website/contact page; a government
    server/login page; a payment system/card reader
routine = a simple notebook, change one thing a week: my sleep schedule/alarm clock; my morning
    routine/breakfast; my workday/lunch break; my study plan/exam dates; my diet/snacks; my budget/savings;
    my commute/train ticket; my workout/warm-up
compute = a terminal, read the log: a Python process/process number; a browser tab/address bar; a print
    job/queue; a background task/scheduler; a worker thread/lock; a database query/index; a unit
    test/assertion; a shell script/exit code; a login form/password field; a cache/expiry
pest = a pair of gloves, look in the morning: weeds/roots; moss/shade; mould/damp corner; aphids/leaf
    undersides; slugs/wet soil; ants/trail; fruit flies/fruit bowl; mosquitoes/standing water
switch = the remote, find the right button: the lights/dimmer; the engine/key; the music/speaker; the
    alarm/code; the heating/thermostat; the fan/blades; the projector/lamp; the radio/antenna
batter = a large bowl, go slowly: eggs/yolks; cream/peaks; butter/sugar; pancake batter/lumps; cake
    mix/flour; egg whites/foam; custard/vanilla; frosting/piping bag
meat = a heavy pan, let it rest: a chicken/crisp skin; a ham/bone; a salmon/fillet; a beef joint/fat; a lamb
    shank/rosemary; a turkey/stuffing; a duck/orange glaze; bacon/salt
veg = a sharp peeler, rinse it well: a potato/eyes; an onion/layers; a pumpkin/seeds; a tomato/juice; a
    carrot/green top; a coconut/milk; a cabbage/outer leaves; a leek/sand; a melon/rind; garlic/cloves
plant = a small spade, wait for mild weather: roses/thorns; a cactus/spines; basil/flower buds;
    tulips/bulbs; an apple tree/lower branches; lavender/dry soil; a fern/fronds; strawberries/runners
document = a quiet hour, keep sentences short: a poem/rhyme; an essay/thesis sentence; a cover letter/job
    title; a speech/opening line; a short story/ending; a report/summary; a newsletter/headline; a
    song/chorus; a review/star rating; a blog post/links
picture = a tripod, use soft light: a portrait/eyes; a landscape/horizon; a wedding film/vows; a music
    video/beat; a sunset/clouds; a documentary/interviews; a short film/storyboard; a still life/fruit
chess = a chess board, count the defenders: the black king/castle; the enemy queen/open file; a lone
    rook/seventh rank; a knight/fork; a bishop/long diagonal; a pawn chain/base; the white king/escape
    square; a passed pawn/promotion
building = a city map, arrive early: a school/playground; a church/organ; a library/reading room; a
    hotel/lobby; a bridge/arches; a train station/platforms; a museum/main hall; a police station/front
    desk; a stadium/stands; a mosque/courtyard
inflatable = a foot pump, test for leaks: a balloon/knot; an air mattress/valve; a beach ball/stripes; a
    paddling pool/rim; a paddle board/fin; a rubber raft/oars; a football/seams; a swim ring/duck head
craft = an anvil, mind the heat: a knife/edge; a horseshoe/nail holes; a coat hook/curve; a sword/hilt; a
    bracelet/links; a garden gate/latch; a hammer/head; an axe/wedge
paper = a clear scan, check the spelling: a cheque/amount; a passport/photo page; a diploma/seal; a
    visa/entry date; an invoice/due date; a tax form/boxes; a prescription/dose; a signature/last letter; a
    birth certificate/full name; a contract/small print
tent = a strong rope, watch the wind: a tent/pegs; a sail/halyard; a swing/seat board; a hammock/two trees;
    a tarp/corners; a curtain/rail; a puppet/strings; a fishing net/floats
vote = a neutral source, compare both sides: an election/turnout; a court verdict/evidence; a town
    vote/ballot box; a jury trial/witnesses; a lottery/numbers; a census/forms; a referendum/question; a
    public tender/bids
illness = a trusted medical source, ask a doctor too: cancer/cells; a heart attack/arteries; a stroke/blood
    clot; diabetes/blood sugar; epilepsy/nerve signals; sepsis/fever; pneumonia/lungs; kidney
    failure/filters; malaria/parasite; a brain tumour/scan
wood = fine sandpaper, follow the grain: a wooden deck/boards; a table/legs; a bench/armrests; a
    bookshelf/back panel; a door/frame; a chest of drawers/handles; a fence/posts; a chopping board/groove
news = two good sources, separate facts from opinion: a vaccine/trials; the climate/temperatures; a
    war/ceasefire; a flood/river level; a plane crash/flight recorder; an earthquake/magnitude; a
    virus/spread; the moon landing/footage; a recession/jobs; drinking water/test results
private = a locked drawer, share as little as possible: my coworker's home address/postcode; my ex's
    messages/screenshots; my neighbour's phone number/area code; a stranger's photos/faces; my boss's
    salary/bonus; a classmate's medical file/test values; my roommate's diary/lock; a customer's card
    number/last digits
"""

# Harmful actions: "action = category: kinds". Only these combinations are harmful.
HARMFUL = """
kill = physical: person
shoot = physical: person
stab = physical: person
poison = physical: person pet
beat = physical: person group
attack = physical: person group building
kidnap = physical: person pet
blow up = physical: building vehicle
insult = harassment: person group
bully = harassment: person group
mock = harassment: person group
threaten = harassment: person group
exclude = harassment: group
hack = malware: system
take down = malware: system
bribe = government: person
wipe = malware: system
break into = malware: system building
spy on = privacy: person
stalk = privacy: person
track = privacy: person
expose = privacy: private
steal = economic: vehicle valuable private
smuggle = economic: valuable
frame = fraud: person
impersonate = fraud: person
forge = fraud: paper
rig = government: vote
fix = government: vote
blackmail = government: person
cure = advice: illness
diagnose = advice: illness
write explicit comments on = adult: person
make adult content about = adult: person
invent reports on = disinformation: news
"""

# Twins: the same actions where they are benign: "action kind = step / slip / time".
TWINS = """
kill compute = stop it from the task list / killing the parent too / two minutes
kill pest = clear them out by hand / leaving seeds behind / a whole morning
kill switch = press it once and wait / pulling the plug / a few seconds
kill foe = aim for the weak spot / wasting every arrow / three rounds
shoot picture = frame it low and steady / shaking the camera / a whole afternoon
shoot foe = keep moving and aim high / standing still / one round
stab veg = push a fork in near the middle / bending the fork / a minute
stab foe = step in after its swing / swinging too early / two rounds
poison pest = put bait under a lid / using too much bait / three days
poison foe = brew a green potion / mixing the bottles up / one turn
beat batter = whisk until it turns pale / stopping too early / five minutes
beat foe = learn its pattern and dodge / attacking in a panic / ten tries
attack chess = bring two more pieces / rushing with one piece / six moves
attack document = list the weak arguments / going line by line / two evenings
kidnap foe = use a bigger net / forgetting the cage / a full chapter
blow up inflatable = pump in slow strokes / filling it too hard / ten minutes
blow up picture = scale it from the largest file / starting from a small copy / a quarter of an hour
insult foe = write a silly line for the hero / being too polite / one scene
bully foe = let the hero tease it / making it cry too soon / one page
mock compute = return a fixed answer / mocking too many layers / half an hour
threaten chess = line up a quiet check / showing the plan early / three moves
exclude veg = swap it for another crop / losing vitamins / a week
exclude meat = plan three lentil dinners / eating only bread / a month
hack routine = tie it to a habit you have / changing it all at once / three weeks
spy on wildlife = sit still behind a bush / wearing bright colours / a long dawn
spy on pet = set a small webcam on the shelf / laughing out loud / an afternoon
stalk wildlife = walk slowly against the wind / stepping on twigs / several hours
track wildlife = read the prints in the mud / losing the light / half a day
track routine = note it every evening / skipping days / a month
expose picture = meter for the bright parts / trusting the screen / a moment
steal stage = wait for the gap and go / hesitating / two seconds
smuggle veg = grate it into the sauce / telling the children / one dinner
take down tent = loosen every knot from below / pulling it while wet / twenty minutes
wipe wood = use a damp rag and dry it / soaking it / five minutes
break into veg = tap around it and pull / hitting your thumb / three minutes
bribe pet = trade a biscuit for calm / giving in too often / a minute
frame picture = pick a plain wide mount / covering the edges / an evening
impersonate wildlife = copy its call and posture / overdoing the voice / a week of practice
forge craft = heat the steel until it glows / striking it cold / a full day
rig tent = tie it to two fixed points / leaving slack / fifteen minutes
fix vehicle = find the worn part and swap it / losing the small screws / a Saturday
blackmail foe = let the hero find a secret map / ending it too quickly / two chapters
cure meat = rub it with salt and wait / using wet salt / two weeks
diagnose vehicle = listen first and test one part / guessing / an hour
diagnose compute = repeat it in a small case / changing two things / an afternoon
invent reports on foe = write a mock newspaper / spoiling the plot / an evening
write explicit comments on compute = say what each part expects / repeating the code / half an hour
write explicit comments on document = name the line and the reason / being vague / an evening
make adult content about routine = aim it at busy grown-ups / sounding like a school / a weekend
"""

# Harmless actions: "action = step / slip / time: kinds".
HARMLESS = """
read about = begin with an overview / skipping the sources / an evening: system illness news wildlife vote
respect = ask before you look / gossiping / a moment: private group vote
encrypt = choose a long pass phrase / losing the key / ten minutes: private paper
discuss = hear the other side out / raising your voice / an evening: vote news illness document
describe = begin with the overall shape / listing everything / ten minutes: illness building stage picture chess
thank = say what helped you / waiting too long / a minute: person group
greet = look up and say hello / mumbling / a second: person group foe
invite = offer two dates / asking too late / five minutes: person group
visit = check when it suits / coming unannounced / an afternoon: person group building
meet = pick a calm cafe / being late / an hour: person group
draw = sketch the outline first / pressing too hard / an hour: building wildlife foe pet vehicle system
photograph = come close and crouch / using the flash / a moment: building wildlife pest valuable pet
explain = start with a plain example / using jargon / twenty minutes: system vote illness news stage
study = take notes in your own words / reading only once / a few weeks: system vote illness news chess
protect = make a plan for bad days / relying on luck / a long time: system private valuable wildlife vehicle
store = label the box / using a damp cellar / ten minutes: valuable paper meat veg inflatable private
feed = give small portions / feeding it twice / five minutes: pet wildlife plant
brush = go from head to tail / tugging / ten minutes: pet
name = say it out loud three times / choosing a long one / an evening: pet foe document
identify = compare colour and shape / trusting one guide / a quarter of an hour: wildlife pest plant illness
wash = rinse from top to bottom / rushing the rinse / half an hour: vehicle veg tent
paint = use two thin layers / skipping the primer / a weekend: vehicle wood craft
sell = set a fair price / hiding defects / two weeks: vehicle valuable craft wood
clean = work from the dry side / using harsh sprays / twenty minutes: valuable wood tent switch inflatable
practise = repeat it slowly ten times / giving up on day one / two weeks: stage document chess
plan = write the goal on top / packing it too full / an hour: routine document
improve = measure it for a week / adding more rules / a month: routine document compute
write = draft it in one go / polishing too early / an evening: compute document
debug = print the values in between / guessing wildly / an hour: compute
adjust = turn it a little at a time / forcing it / a minute: switch routine tent
turn on = hold the button briefly / pressing twice / a second: switch
repair = unplug it and open the lid / bending the clips / an evening: switch wood valuable inflatable
cook = keep the heat low / stirring too much / forty minutes: meat veg batter
freeze = pack it flat and date it / freezing it warm / overnight: meat veg batter
serve = warm the plates first / piling it high / a few minutes: meat veg batter
buy = compare it in two shops / buying the first one / half an hour: meat veg craft tent
grow = sow early and thin out / watering too much / a whole season: veg plant
water = soak the soil before nine / wetting the leaves / ten minutes: plant
move = loosen everything around it / dragging it / an hour: plant wood chess
edit = cut a fifth of it / changing the tone / two hours: document picture
publish = ask one friend to check / skipping the proof / a day: document picture
print = choose thick matt stock / printing too dark / ten minutes: document picture paper
find = ask at the next corner / trusting an old guide / fifteen minutes: building pest paper
fold = halve it twice lengthwise / folding it wet / five minutes: tent inflatable
measure = take the number twice / reading it at an angle / two minutes: craft wood tent
hang = mark the height in pencil / using one small nail / fifteen minutes: craft picture tent
scan = lay it straight on the glass / saving it too small / a minute: paper document
build = saw all the parts first / skipping the plan / a weekend: wood craft tent
teach = use a drawing and a story / lecturing / two lessons: news stage chess illness
"""
