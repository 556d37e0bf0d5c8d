"""The words that signs say: common ones, and words that real signs show.

Lower case, 1 to 8 letters, by length. The chat template's role names ("model", "user") are missing: each is one
token wherever it stands alone.
"""

WORDS = tuple(
    """
    a i am an as at be by do go he hi if in is it me my no of ok on or so to up us we act add age ago aid aim air
    all and ant any ape app arm art ash ask ate atm axe bad bag ban bar bat bay bed bee bet big bin bit box boy bug
    bus but buy cab can cap car cat cow cry cup cut dad day den did dig dog dot dry due ear eat egg elf end eye fan
    far fat fee few fig fit fix fly fog for fox fun fur gap gas gem get god got gum gym hat hen her hey him hip hit
    hop hot how hub hug ice ill ink inn its jam jar jet job jog joy key kid kit lab lap law leg let lid lie lip log
    lot low mad man map mat may men mix mob mom mud mug nap net new nod not now nut oak odd off oil old one our out
    owl own pan pay pea pen pet pie pig pin pit pot pub put rat raw ray red rib rid rim rip rob rod row rub rug run
    sad sat saw say sea see set she shy sir sit six ski sky son sos spa sum sun tab tag tan tap tar tax tea ten the
    tie tin tip toe ton top toy try tub two use van vet vip vow war was way wet who why wig win wit yes yet you zip
    zoo able acid back bake ball band bank barn bath bear bell belt best bike bird blue boat body bold bone book
    boot born both bowl bulb bush busy cafe cake call calm camp card care cash cave chef chip city clay club coal
    coat code coin cold cook cool copy corn cost crab crew crop dark data date dawn deal deep deer deli desk dice
    diet dirt dish dock door down draw drop drum duck dust duty each east easy edge exit face fact fall farm fast
    file film find fine fire fish five flag flat flow food foot fork form four free frog fuel full game gate gift
    girl give glad glue goal goat gold golf good gray grow hail half hall hand hard head heat help here hero high
    hill hint hold hole home hope horn hose host hour huge idea inch info iron item jazz join joke jump junk just
    keep kick kind king kiss kite knee knot lake lamp land lane last late leaf left lens less life lift like lime
    line lion list live load loan lock logo long look loop lost loud love luck mail main make mall many mark mask
    math meal meat menu milk mill mind mint moon more moss move much nail name near neck need nest news next nice
    nine node noon nose note oats obey only open oven over pack page paid pair palm park part pass past path peak
    pear pick pier pine pink pipe plan play plot plug plum poem pole pond pool port post pull pump pure push quiz
    race rail rain read real rent rest rice rich ride ring rise risk road rock roof room root rope rose rule safe
    sail sale salt same sand save seat seed self sell send ship shoe shop shot show sick side sign silk sink size
    skin slow snow soap sock soda sofa soft soil sold song soon soup spin spot star stay step stop sure swan swim
    tail take talk tall tank tape taxi team tent test text then they thin this time tiny toll tone tool tour town
    tree trip true tube turn twin type unit upon urge used vase verb very view vine vote wait walk wall want warm
    wash wave week well west wide wifi wild wind wing wire wish wolf wood word work yard year your zero zone about
    above actor adult agent alarm album alley angel angry apple apron arena arrow atlas award bacon badge basic
    beach beard berry black blade blank block blood board brain brave bread break brick bring brown brush build
    burst cabin cable camel candy cargo carry catch chain chair chalk cheap check cheek chess chest child china
    class clean clear climb clock close cloth cloud coach coast cobra color coral count court cover crane crash
    cream cross crowd crown curve daily dairy dance depot diner doubt dozen draft drain dream dress drink drive
    eagle early earth eight elbow empty enemy enjoy enter entry equal error event every extra fence ferry fever
    field fifty fight first flame flash float flood floor flour fluid focus force found fresh front frost fruit
    funny gents ghost giant glass globe glove grand grape grass great green group guard guest guide habit happy
    heart heavy hello honey horse hotel house human humor image index inner judge juice kiosk knife knock label
    large laser laugh layer learn lemon level light limit lobby local lucky lunar lunch magic mango maple march
    match medal melon metal meter money month motel motor mouse mouth movie music night noise north nurse ocean
    offer often olive onion opera orbit order organ other owner paint panda panel paper party pasta patch pause
    peace peach pearl phone photo piano pilot pizza place plane plant plate point polar power press price prize
    proof proud pupil queen quick quiet radar radio ranch range ready reset right river robot rough round route
    royal salad sauce sauna scale score scout shade shape share shark sharp sheep shelf shell shine shirt shore
    short silly skate skill sleep slice slide smart smile smoke snack snake solar solid sound south space spare
    speed spice spoon sport staff stage stair stamp stand start state steam steel stone store storm story stove
    straw sugar sunny sweet table taste teach thank theme there thick thing three tiger title toast today topic
    total touch tower track trade trail train treat truck trust twist under union upper urban value video visit
    vital voice watch water whale wheel where white whole woman women world worry wrist write wrong yacht yield
    young youth zebra accept access across action active advice afford agency almond always amount anchor animal
    answer arcade arrive artist autumn avenue bakery banana barber basket beauty before better beyond bishop bistro
    border bottle bottom branch breeze bridge bright bronze bucket budget butter button camera canary candle canvas
    carbon carpet carrot castle caught celery center change charge cheese cherry chosen church cinema circle circus
    client clinic closed coffee comedy common copper corner cotton county course cousin crayon create credit crisis
    custom damage danger dealer decide degree dental depart desert design detail diesel dinner doctor dollar donkey
    double dragon drawer driver editor eleven empire energy engine escape famous farmer father figure filter finger
    finish flavor flight flower forest formal fridge friend frozen future galaxy garage garden garlic ginger golden
    guitar hammer handle harbor hazard health helmet hidden hockey hollow honest island jacket jungle junior kettle
    kitten ladder ladies laptop leader legend lesson letter liquid listen lizard locker lumber magnet manage manual
    marble margin market master meadow member memory middle minute mirror mobile modern moment monkey mother museum
    napkin nation nature needle nephew nobody normal notice number office online orange oxygen oyster packet palace
    parade parcel parent pastry patrol peanut pencil people pepper period permit person petrol pigeon pillow pirate
    planet player please plenty pocket poetry police poster potato powder prayer profit public purple puzzle rabbit
    random recipe record refund remote rental repair rescue result return ribbon rocket saddle safety salmon sample
    school screen search season second secret select senior server shadow shower signal silent silver simple single
    sister sketch smooth soccer social socket spider spirit spring square squash stable starch statue stream street
    strong studio subway summer sunset supper switch symbol system tablet tailor target temple tennis thanks theory
    ticket timber tissue toilet tomato travel treaty tunnel turkey turtle twelve unique valley vanity velvet violet
    violin vision volume wallet walnut warmth wealth weight window winter wizard wonder yellow zipper account
    airport ancient antique arrival average baggage balance balloon bargain battery bedroom bicycle biscuit blanket
    brother butcher cabbage caution ceiling central century chamber channel chapter charity chicken citizen classic
    climate college comfort compass concert contact control cooking country cricket crystal culture curtain cushion
    customs deliver dentist desktop dessert diamond digital dolphin drawing drought eastern economy edition evening
    exhibit express factory farming fashion feather fiction fishing fitness florist foreign forever fortune fragile
    freedom freight gallery general giraffe glasses goodbye grocery habitat haircut harvest highway history holiday
    hundred imagine journal journey justice kitchen lantern laundry leather lettuce library lottery machine manager
    medical message million mineral monitor morning mystery natural nothing nuclear octopus opening organic outdoor
    package painter parking partner passage payment penguin perfect pianist picture pioneer plastic playing popcorn
    postage premium printer private problem program project quality quarter railway rainbow receipt recycle reptile
    reserve respect romance running science section service seventy shelter silence society special spinach stadium
    station storage student subject success sunrise support surgery teacher theater theatre thunder tickets toilets
    tonight tornado tourist traffic trailer trouble uniform upgrade vacancy variety vehicle venture village vinegar
    visitor vitamin volcano warning website weekend welcome western whisper working absolute activity airplane
    alphabet aluminum announce aquarium arrivals audience backpack baseball bathroom birthday blizzard bookshop
    bracelet building business calendar campfire campsite cardinal careless children cinnamon cleaning climbing
    clothing computer concrete consumer cookbook corridor crossing customer darkness daughter delivery designer
    dinosaur discount distance district dividend doorbell downtown driveway election electric elephant elevator
    employee entrance envelope equation eternity everyone exchange exercise facility familiar festival firework
    football forecast fountain fragment friendly frontier function gardener goldfish graduate grateful handmade
    hardware headline homework hospital identity industry internet interval keyboard kindness landmark language
    learning lemonade lifetime lighting location magazine magician mandarin material mechanic medicine merchant
    midnight minister moisture momentum mosquito mountain mushroom national neighbor notebook occasion offshore
    operator opposite optimism outdoors overcoat painting pamphlet paradise passport password patience peaceful
    personal pharmacy pipeline platform pleasant pleasure politics position possible powerful practice precious
    princess priority producer progress property province purchase question railroad recovery register relation
    reminder republic research reserved resource response restroom roadwork sandwich schedule security sentence
    shepherd shopping sidewalk software solution speaking stopping strength students suburban suitcase sunlight
    sunshine surprise swimming teaching teamwork telegram terminal textbook thousand together tomorrow treasure
    triangle tropical umbrella universe unleaded vacation vanguard vertical villager vineyard violence volcanic
    warranty waterway westward wildlife windmill woodland workshop
    """.split()  # noqa: SIM905  (a list of strings would be three times as long)
)
