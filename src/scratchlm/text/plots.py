"""The plots of the tales, in the small language that `scratchlm.text.tales` reads.

A plot is: who the other one is (friend, elder, family or small); lists, as `names = option ; option`, where several
names share the parts of an option, parted by ` / `; and the beats, each a block with its ways to be told after dashes.
Of each list one option is drawn for a tale, of each beat one way. `[a|b]` is a choice. `{h}` is the hero and `{f}` the
other one, with their pronouns; the rest is drawn by `scratchlm.text.tales`.
"""

PLOTS = (
    """friend
gift = {h.his} last birthday ; the spring fair ; the first day of school ; last winter ; {h.he} was very small
giver = {h.his} grandmother ; {h.his} best uncle ; {h.his} big sister ; {h.his} father ; an old sailor
doing = watching the ants ; eating lunch ; drawing a picture ; taking a nap ; telling a story ; resting ; playing

- {when}, {h} [reached into {h.his} pocket|looked on the shelf|opened {h.his} bag] and [stopped short|frowned|felt
  cold]. {h.His} {thing} was gone! {h.He} had [carried it everywhere|loved it dearly|kept it safe] since {gift}.
- {when}, {h} [wanted to play with|could not find|missed] {h.his} {thing}. It had been [a present|a gift] from {giver},
  and there was no other like it.

- "Oh no," {h.he} [said|cried|whispered]. "Where can it be?" {h.He} ran to {outdoors} and looked {spot}. {h.He} saw only
  {junk}. Then {h.he} looked {spot2}, but all {h.he} found was {junk2}. [A tear rolled down {h.his} cheek.|{h.His} heart
  sank.|]
- {h} looked in every corner of the house. Then {h.he} went to {outdoors} and searched {spot}. {h.He} found {junk}, but
  no {thing}. "I will never see it again," {h.he} [sighed|sobbed|said sadly].

- Just then {f.intro} came [by|along the path]. "[Why are you so sad|What is the matter|Why do you look so worried]?"
  {f.he} asked. {h} told {f.him} [everything|the whole story]. "[Let us think|Sit down and think]," said {f}. "Where
  were you when you last had it?"
- {f.Intro}, who was passing by, stopped. "[What are you looking for|Did you lose something]?" {f.he} asked. "My
  {thing}," said {h}. "[Two can look better than one|I will help you]," said {f}. "When did you last see it?"

- {h} [closed {h.his} eyes and thought|thought hard]. "Yesterday I was {doing} {spot3}," {h.he} said. They ran there as
  fast as they could. [And sure enough, there|And what do you think? There] lay the {thing}, [a little dusty but
  safe|shining in the light|right where {h} had left it]!
- "I was {doing} {spot3}," said {h} slowly. "Then [we should look there|that is the place]," said {f}. They went
  together, and {f} [saw it first|pointed]. The {thing} was [half hidden under a leaf|waiting for them]!

- {h} [hugged|thanked] {f} and [held the {thing} tight|danced for joy]. [From that day on, {h.he} always put it back in
  its place.|That night {h.he} slept with it under {h.his} pillow.|{h.He} had found {h.his} {thing}, and a very good
  friend as well.]
- "[Thank you|You are a true friend]," said {h}. "[I looked with my eyes, but you looked with your head|Alone I only
  cried, but together we found it]." [They played until the sun went down.|They both laughed all the way home.]
""",
    """elder
dish / dish_name / missing / part = an apple cake / cake / sugar / slice ; a pot of soup / soup / salt / bowl ; pancakes
    / plate of pancakes / milk / pancake ; a berry pie / pie / flour / piece ; honey bread / bread / honey / slice ; oat
    cookies / tray of cookies / butter / cookie ; a plum pudding / pudding / cream / spoonful ; a carrot cake / cake /
    flour / piece ; corn bread / bread / salt / slice ; bean stew / stew / pepper / bowl ; rice with raisins / rice /
    milk / bowl ; a cheese pie / pie / butter / slice
found = an old spoon ; three dry beans ; a sleepy spider ; a cork and a string ; some mustard ; a bag of tea
chore = washing the windows ; sweeping the floor ; feeding the cat ; mending a sock ; watering the beans ; resting in a
    chair
task / done = wood / stacked ; hens / fed ; leaves / raked ; dishes / dried ; letters / sorted ; beds / made ; shelves /
    dusted ; apples / picked ; carrots / washed

- {when}, {h} decided to make {dish} [for {h.his} family|for a friend who was sick|all by {h.himself}]. {h.He} put on an
  apron and [washed {h.his} hands|took out the big bowl]. But when {h.he} opened the cupboard, there was no {missing}.
- {when}, {h} woke up hungry for {dish}. {h.He} had everything {h.he} needed, [or so {h.he} thought|almost]. Then {h.he}
  saw that the {missing} jar was empty. "[What now?|Oh dear!]" said {h}.

- {h.He} tried to make it without {missing}, but it tasted [like paper|like mud|of nothing at all]. "[Yuck|Ugh]!" said
  {h}, and [made a face|laughed at {h.himself}].
- {h} [looked behind the cups|climbed on a chair and looked again]. {h.He} found {found}, but that would not do.

- So {h.he} went to see {f.intro}. {f} was {chore}. "[Good day|Hello], {f}," said {h}. "May I please have a little
  {missing}? [I will bring you something back|I can help you in return]."
- Then {h} had an idea. {h.He} would ask {f.intro}. {h.He} knocked on the door. {f} was {chore}. "[Come in|What a nice
  surprise], {h}," {f.he} said. "What do you need?" "Only a little {missing}, please," said {h}.

- "[Of course|Gladly]," said {f}. "But first, could you help me? The {task} must be {done}." {h} was glad to help. They
  worked side by side, and {f} [told a funny story|hummed an old song|taught {h.him} a riddle]. [Soon|Before long] the
  work was done.
- {f} gave {h.him} a whole cup of {missing}. {h.He} saw that {f} was tired, so {h.he} stayed to help. The {task} had to
  be {done}, and {h} did it [gladly|with a smile|in no time].

- Back home, {h} [stirred and stirred|mixed it all well|worked until {h.his} arms were tired]. [Soon the whole house
  smelled wonderful.|At last it was ready.] {h.He} took the [first|biggest|best] {part} to {f}. "[Delicious|This is the
  best I ever had]!" said {f}, [and they ate together until not a crumb was left|and gave {h.him} a wink].
- That evening the {dish_name} [came out just right|was better than ever]. {h} shared it with everyone, and {f} got the
  [first|biggest] {part}. ["Shared food tastes twice as good," said {f}.|{h} went to bed full and happy.|"Next time I
  will look in the cupboard first," said {h}, and everyone laughed.]
""",
    """friend
trick = Breathe in slowly and count to five ; Sing a little song ; Think of your favorite cake ; Say hello to it, out
    loud
fear / others / step1 / step2 / triumph = the dark / told stories at night / we sit in the shed with the door open / we
    look at the stars for a while / walked home under the moon ; deep water / went swimming / we only wet our toes / we
    go in up to the knees / swam from one side to the other ; the high slide / slid down / we climb two steps and come
    back / we climb to the top and look around / slid down with both arms in the air ; big dogs / played with Bear, the
    baker's dog / we look at Bear from far away / we let Bear smell our hands / gave Bear a long hug ; thunder / watched
    the storm / we listen from under the blanket / we count between the flash and the boom / stood at the window and
    clapped for the storm ; singing in front of people / sang in the square / you sing to me alone / you sing to me and
    my cat / sang a whole song in the square ; the old bridge / ran over the bridge / we put one foot on it / we walk to
    the middle and back / ran over the bridge and back again ; climbing / sat in the old tree / we sit on the lowest
    branch / we climb one branch more / sat at the very top of the old tree

- But there was one thing {h} was afraid of: {fear}. [When the others {others}, {h.he} stayed behind.|{h.He} never told
  anyone about it.] "[I am not brave.|What if something bad happens?]" {h.he} thought.
- {h} had a secret. {h.He} was afraid of {fear}. [Just thinking of it made {h.his} knees shake.|Even {h.his} belly felt
  cold when {h.he} thought of it.] While the others {others}, {h} [looked the other way|found something else to do].

- {when}, {f.intro} saw {h.him} [standing|sitting] all alone. "Why [do you not come with us|are you alone]?" {f.he}
  asked. {h} looked at the ground. "I am scared of {fear}," {h.he} [whispered|said at last].
- {when}, {f.intro} came to see {h.him}. "Come and play!" {f.he} called. {h} shook {h.his} head. "I cannot," {h.he}
  [whispered|said]. "I am scared of {fear}."

- {f} did not laugh. "[I was scared of it too|Everyone is scared of something]," {f.he} said. "[We can start very
  small|We will go one step at a time|Hold my hand]. First {step1}."
- "That is all right," said {f}. "[My father is scared of mice|My aunt is scared of spiders]. But I know a trick.
  {trick}. And then {step1}."

- {h} took a deep breath and did it. [Nothing bad happened.|It was not so bad.] The next day they came back. "Now
  {step2}," said {f}. {h.His} heart went thump, thump, thump, but {h.he} [did it|tried].
- So they did that, and {h} was still all right. "Now {step2}," said {f} [softly|with a smile]. {h} [shut {h.his}
  eyes|counted to three|held {f}'s hand tight], and [then {h.he} did it|soon it was done].

- [On the third day|By the end of the week], {h} {triumph}, all by {h.himself}. "[Look at me|I did it]!" {h.he}
  [shouted|cried]. {f} [clapped|jumped up and down|cheered]. ["Being brave does not mean that you are never scared,"
  said {f}. "It means that you try."|{h} was still a little scared. But now {h.he} was brave as well.]
- [One week later|In the end], {h} {triumph}. {h.He} [laughed out loud|could hardly believe it]. "[It is fun|It was
  never as big as I thought]!" {h.he} said. [And now, when someone else is afraid, it is {h} who holds their hand.|That
  night {h.he} fell asleep with a smile.]
""",
    """small
stuck / try / tool / rescue = stuck in a thorny bush / pulled at the branches / a pair of thick gloves / bent the thorns
    aside, one by one ; caught in an old net / pulled at the net / a pair of small scissors / cut the net, string by
    string ; stuck in the mud / tried to reach it with one hand / a long flat board / laid it over the mud and crawled
    to the middle ; trapped in a deep hole / reached down as far as possible / a long rope with a basket / let the
    basket down and pulled it up again ; under a heavy branch / pushed the branch / a strong stick / put the stick under
    the branch and lifted it up ; in a bucket full of water / tried to tip the bucket / a wooden spoon / held out the
    spoon like a bridge
trouble / return_help = lost the way home in the fog / went ahead and showed the way, all the way to the door ; dropped
    a key into a crack between two stones / slipped into the crack and brought up the key ; got both feet stuck in the
    mud / fetched all the neighbors to pull ; could not find the path after dark / sang and sang until {h} found the
    path ; was sad and had no one to talk to / stayed all afternoon and told one joke after another

- {when}, {h} took a walk to {outdoors}. {weather} Suddenly {h.he} heard a [small|weak|sad] voice {spot}. "Help! Help!"
  There {h.he} saw {f.intro}, {stuck}.
- {when}, {h} went to {outdoors} to pick [berries|flowers|nuts]. {weather} But {spot} {h.he} found {f.intro}, {stuck}.
  "Please help me," it [said|cried].

- "[Do not be afraid|Hold still]," said {h}. {h.He} {try}, but it [did not work|was no use]. The {f.kind} began to
  [cry|shiver].
- {h} {try}. That did not work. "[What shall I do?|I must think of something.]" {h.he} thought.

- Then {h} had an idea. {h.He} ran home and came back with {tool}. [Slowly and gently|Very carefully], {h.he} {rescue}.
  At last the {f.kind} was free!
- {h} looked around and saw {tool}. "[That might do|This is just what I need]!" {h.he} said. {h.He} {rescue}. [One, two,
  three|A moment later], the {f.kind} was free.

- "Thank you," said the {f.kind}. "My name is {f}. [I am small, but I will not forget this|One day I will help you
  too]." {h} [smiled|laughed]. "[You are very welcome|Just be careful]," {h.he} said.
- "[You saved me|You are so kind]," said the {f.kind}. "I am called {f}. If you ever need me, just [whistle|call my
  name]." And off it went.

- Some days later, {h} {trouble}. {h.He} [called|whistled] and called. Who came to help? It was {f}! The {f.kind}
  {return_help}. "[Now we are even|You see, small friends can do big things]," said {f}. [They have been friends ever
  since.|{h} thanked {f} with all {h.his} heart.]
- [The next week|Not long after], {h} {trouble}. [{h.He} did not know what to do.|{h.He} felt very alone.] Then {h.he}
  remembered {f}. The little one came at once and {return_help}. [A kindness always finds its way back.|"Thank you,
  {f}," said {h}. "I am glad that we met."]
""",
    """friend
toy = red kite ; wooden boat ; toy wagon ; paper crown ; wooden horse ; yellow drum ; big puppet ; toy castle ; striped
    top ; blue windmill ; clay whistle ; toy train
fix = some glue ; needle and thread ; a roll of tape ; a pot of paint and some glue ; some strong string

- {when}, {h} and {f.intro} found a {toy} {spot}. "[It is mine|I saw it first]!" said {h}. "No, [it is mine|I did]!"
  said {f}. They both pulled. [Crack!|Snap!] The {toy} broke in two.
- {when}, {h} was playing with a {toy} {spot} when {f.intro} came by. "Let me have it," said {f}. "No, I will not," said
  {h}. {f} [took hold of it|pulled], {h} pulled back, and the {toy} [fell and broke|broke in two].

- "Look what you did!" they both shouted. {h} went home [with a red face|and slammed the door]. {f} went home too,
  [kicking a stone|without a word].
- [Nobody said a word.|For a moment it was very quiet.] Then {h} walked one way, and {f} walked the other way.

- {h} tried {hobby}, but it was no fun. {h.He} tried {hobby2}, but that was no fun either. The house was [too quiet|so
  quiet that {h.he} heard the clock]. "[I miss {f}|It was only a toy]," thought {h}.
- That night {h} could not sleep. {h.He} thought of how {f} [always shared {f.his} lunch|had carried {h.his} bag when
  {h.he} was hurt|knew the best jokes]. "[I was not kind|A friend is worth more than a toy]," {h.he} thought.

- The next morning {h} took {fix} and [went out|ran to {outdoors}]. And who was coming up the path? It was {f}, with the
  other half in {f.his} hands. "I am sorry," said {h}. "I am sorry too," said {f}, [at the very same time|very softly].
- In the morning there was a knock at the door. There stood {f}, [looking at {f.his} feet|with {fix}]. "I am sorry I
  pulled," {f.he} said. "I am sorry too," said {h}. "[Shall we mend it?|Come in. We can mend it.]"

- They sat {spot2} and mended the {toy} together. It [looked a little funny|was not as pretty as before], but they liked
  it even better. "[One day it is yours, and one day it is mine|We can take turns]," said {h}. [And that is what they
  did.|{f} nodded, and they shook hands.]
- Together they put the {toy} back together. [It had a crack down the middle|One side was a bit crooked], but they did
  not mind. ["Now it belongs to both of us," said {f}.|"You first," said {h}. "No, you first," said {f}, and they
  laughed.]
""",
    """friend
work / parts / test1 / fail / fail_low / cause / mend / success = a raft / logs and rope / They pushed it into the
    water. / It tipped over and they both got wet. / it tipped over with a splash. / All the heavy logs are on one side
    / They put heavy logs on both sides and tied them well. / the raft floated like a duck. ; a kite / paper and thin
    sticks / They ran with it into the wind. / It fell on its nose. / it fell straight down. / It needs a tail to keep
    it steady / They made a long tail out of old ribbons. / the kite went up and up until it was a dot in the sky. ; a
    tree house / boards and nails / They climbed up to try it. / One board slid down, and then another. / the floor
    began to slide. / The boards must rest on two branches / They laid each board over two strong branches. / the floor
    did not move at all. ; a snow castle / buckets of snow / They made the walls very tall. / The walls fell in. / the
    walls fell in. / The snow is too dry, so it needs a little water / They wet the snow and pressed it with their
    hands. / the walls stood as hard as stone. ; a cart / four wheels and a box / They rolled it down the lane. / A
    wheel came off and rolled away. / a wheel came off. / There is no pin to hold the wheel / They put a small wooden
    pin beside each wheel. / the cart rolled all the way to the gate. ; a bridge over the stream / flat stones and a
    plank / {h} took one step. / The plank slid, and {h} sat down in the cold water. / the plank slid into the water. /
    The ends of the plank lie on wet mud / They put flat stones under both ends. / the bridge held, even when they
    jumped. ; a tent / a blanket and some poles / They crawled inside. / It fell on their heads. / it fell right on
    their heads. / Nothing is holding the poles up / They tied the poles to a tree with string. / the tent stood firm,
    even in the wind.

- {when}, {h} had a [big|wonderful|bold] idea. "I will build {work}," {h.he} told {f.intro}. "[Can I help?|That sounds
  hard. Can I help?]" said {f}. "[Of course you can help|We can do it together]," said {h}.
- {when}, {h} and {f.intro} sat {spot} and [had nothing to do|looked at the clouds]. "[I know what to do|Listen]," said
  {h}. "Let us build {work}!" {f} [jumped up at once|clapped {f.his} hands].

- They gathered {parts} and worked [all morning|until noon]. {test1} But oh dear! {fail}
- They [looked everywhere for|carried home] {parts}, and then they began. {h} held the pieces and {f} [tied the
  knots|counted]. {test1} But {fail_low}

- "[It is no use|I give up]," said {h}, and sat down {spot2}. "[Wait|Not yet]," said {f}. "[Why did it happen?|Let us
  look at it again.]" They looked [closely|from all sides]. "I see!" said {h}. "{cause}."
- {f} wanted to go home. But {h} did not give up. {h.He} [walked around it three times|scratched {h.his} head]. "I
  know!" {h.he} [said|cried]. "{cause}."

- So they tried again. {mend} This time {success}
- {mend} It took [a long time|the whole afternoon], but they [sang while they worked|did not mind]. And this time
  {success}

- "[We did it|It works]!" they [shouted|cried] together. ["The first try only shows you how to do the second," said
  {h}.|{f} laughed so hard that {f.he} had to sit down.|Everyone came to {outdoors} to see it.] [It was the best day of
  the whole year.|And tomorrow they would build a bigger one.]
- {h} and {f} [danced for joy|looked at each other and smiled]. [They were tired and dirty, and as happy as could be.|"I
  am glad that you did not give up," said {f}.] [That evening they told everyone about it.|They stayed until the stars
  came out.]
""",
    """elder
impatient = sang to it ; dug a little hole to peek at it ; told it a bedtime story ; put a blanket around the spot ;
    stamped {h.his} foot
height = as tall as the fence ; taller than {h} ; as high as the window ; as tall as {f}
harvest = big yellow sunflowers ; round red tomatoes ; sweet peas ; orange pumpkins ; crisp green beans ; blue flowers
    that smelled like honey ; juicy melons

- {when}, {f.intro} gave {h.him} a [small|tiny|round] seed. "[Plant it and wait|Take good care of it]," said {f}, "and
  you will see something [wonderful|lovely]." {h} planted it {spot}.
- {when}, {h} found a [strange|tiny] seed {spot2}. {h.He} showed it to {f.intro}. "What will it be?" {h.he} asked.
  "[Plant it and see|Only time can tell]," said {f}. So {h} planted it {spot}.

- The next day {h} ran to look. There was nothing but [brown earth|dirt]. The day after, there was still nothing.
  "[Grow|Wake up], seed!" {h.he} [called|said]. {h.He} even {impatient}, but the seed took its time.
- Every morning {h} came to look, and every morning there was nothing to see. {h.He} {impatient}. Still nothing. "[I do
  not think it works|Maybe it is asleep]," {h.he} told {f}.

- "[Good things are slow|You cannot hurry a seed]," said {f}. "Give it water, keep the weeds away, and [wait|do other
  things while you wait]." So {h} watered it each day. In between {h.he} went back to {hobby}.
- {f} [smiled|sat down beside {h.him}]. "How long did it take you to [learn to walk|grow so tall]?" {f.he} asked. "[A
  long time|I do not remember]," said {h}. "Well," said {f}, "it is the same for a seed." [So {h} kept on watering and
  waiting.|]

- Then, after [ten|twelve|many] days, a small green tip came out of the ground. {h} [shouted for joy|did not dare to
  breathe]. [Rain came, and sun came.|{h.He} built a little fence around it.] Week by week the plant grew, until it was
  {height}.
- One rainy morning, there it was: a tiny green leaf! It grew as tall as a cup. Then it grew until it was {height}.
  ["Look at you!" said {h}.|{h} measured it every Sunday.]

- In the summer it gave {harvest}. {h} [picked the best one|took a basket] and gave it to {f}. "[I am glad that I
  waited|It was worth the wait]," {h.he} said. "[And next year you will have more seeds|So am I]," said {f}.
- And then one day {h} saw what it was, for it was full of {harvest}. There was enough for [everyone|the whole street].
  {h} saved [a handful of seeds|one seed] for the next spring, [because now {h.he} knew how to wait|and this time {h.he}
  was not in a hurry].
""",
    """elder
doing = playing ball ; running in circles ; jumping from chair to chair ; dancing with a broom ; spinning a top
broken = blue vase ; teapot ; flower pot ; best plate ; painted bowl ; little clock ; glass lamp ; picture frame
hidden = under the rug ; behind the curtain ; under the bed ; in the wood box ; behind the stove
hobby_cap = Drawing ; Singing ; Playing outside ; Reading ; Even the swing ; Baking

- {when}, {h} visited {f.intro}. "Please do not play in the house," said {f}. But soon {h} was {doing}. Bump! {h.He} hit
  the table, and {f}'s {broken} fell to the floor. It broke into [three|many|small] pieces.
- {when}, {h} went to see {f.intro}. While {f} was in the garden, {h} picked up {f.his} {broken} to have a closer look.
  It slipped out of {h.his} hands. Crash! It broke.

- {h} [looked around|held {h.his} breath]. Nobody had seen it. Quickly {h.he} hid the pieces {hidden}. When {f} came in
  and asked, "Have you seen my {broken}?" {h} said, "[No|Maybe the cat took it]."
- "[Nobody must know|I will be in trouble]," thought {h}. {h.He} pushed the pieces {hidden}. Soon {f} came back. ["Where
  is my {broken}?" {f.he} asked.|"That is strange. My {broken} is gone," {f.he} said.] "I do not know," said {h}.

- But after that, nothing was right. {h}'s [soup had no taste|belly hurt]. {hobby_cap} was no fun. It felt as if {h.he}
  had swallowed a stone. [Every time {f} was kind to {h.him}, the stone grew heavier.|]
- That night {h} lay awake. {h.He} turned to one side, and then to the other. [The moon looked in at the window as if it
  knew.|The clock on the wall seemed to say: lie, lie, lie.] "I told a lie," {h.he} thought, and it felt [cold|heavy].

- In the morning {h} went to {f}. "I broke it," {h.he} said, and began to cry. "I broke your {broken}, and I hid the
  pieces, and I [did not tell the truth|told a lie]. I am so sorry."
- At last {h} took the pieces and carried them to {f}. "It was me," {h.he} said in a small voice. "I [was afraid|did not
  want you to be angry]. I am sorry."

- {f} was quiet for a moment. Then {f.he} [took {h.him} in {f.his} arms|sat down next to {h.him}]. "I am sad about the
  {broken}," said {f}, "but I am glad that you told me. [That was hard to do|A thing can be mended]." [They glued it
  together that same day.|{h} helped all week to make up for it.] The stone in {h.his} belly was gone.
- "Thank you for telling me," said {f}. "[A {broken} is only a {broken}|Things break], but [your word is worth much
  more|the truth is worth a lot]." They fixed it with glue. [It had many lines now, and each time {h} saw them {h.he}
  remembered.|That night {h} slept like a stone in the river, still and deep.]
""",
    """friend
newcomer = from a far country ; very quiet ; small and shy ; from the other side of the hills ; a stranger to all of
    them
snack = half of my bread ; a piece of apple ; a cookie ; a warm roll ; a sweet pear ; a slice of cake
snack2 = two plums ; a warm roll ; some grapes ; a bag of berries ; a big orange
talent = juggle four stones ; draw a bird with one line ; walk on {f.his} hands ; whistle like a lark ; fold a boat out
    of one leaf ; stand on one leg for an hour ; do a magic trick

- {when}, someone new came to live near {h}. {f.He} was {newcomer}, and {f.his} name was {f}. {f} did not say a word to
  anyone. {f.He} just sat {spot} and looked at {f.his} [feet|hands].
- {when}, {h} saw someone [sitting|standing] all alone {spot}. It was {f}, who was new here. [The others did not ask
  {f.him} to play.|Nobody knew {f.him} yet.]

- "[{f} is strange|{f} never talks]," said the others. But {h} remembered [{h.his} own first day|how it feels to be
  alone]. {h.He} went over and said, "Hello. I am {h}. [Do you want to play|What do you like to do]?" {f} shook {f.his}
  head.
- {h} walked up to {f.him}. "Would you like {snack}?" {h.he} asked. {f} [looked up, and|did not answer, but] {f.he} took
  it. They ate side by side and [said nothing|watched the clouds|listened to the birds]. It was [not bad at all|a good
  kind of quiet].

- The next day {h} came again and brought {snack2}. {f} smiled a very small smile. The day after that, {h} saw {f}
  {talent}. "[How do you do that?|That is amazing!]" said {h}. "[Nobody ever asked|I can teach you]," said {f}. It was
  the first thing {f.he} had ever said.
- After some days, {h} found out a secret: {f} was very good at one thing. {h.He} saw {f.him} {talent} when {f.he}
  thought that no one was looking. "Please show me!" said {h}. And {f} did.

- Soon the two of them were together every day. {f} taught {h} how to do it, and {h} showed {f.him} [all the best
  places|the way to {outdoors}]. [They laughed so much that the others came to see.|When the others saw it, they wanted
  to learn it too.]
- "Everybody, come and look!" called {h}. The others came and [stared|opened their mouths]. "[Can you teach us too?|Do
  it again!]" they said. {f} turned red, but {f.he} was happy.

- [Now {f} is never alone.|After that, nobody called {f} strange.] And [whenever someone new comes|when a new face shows
  up], {h} and {f} are the first to say hello.
- "Why did you talk to me?" {f} asked one evening. {h} thought about it. "[You looked like a friend I had not met
  yet|Someone had to be first]," {h.he} said. [And they walked home under the first stars.|]
""",
    """family
noise / what = Scratch, scratch / a small mouse that was building a nest ; Tap, tap, tap / a branch that touched the
    window in the wind ; Whoo, whoo / a young owl that had lost its way ; Drip, drop, drip / a hole in the roof, and
    rain falling into a pan ; Creak, creak / the garden gate, which nobody had closed ; Bump, bump / a hedgehog with its
    head in a jam jar ; Rattle, rattle / the cat, who was playing with a box of buttons
maybe = a dragon ; a ghost ; a giant with big boots ; a robber ; a troll ; a wolf with yellow eyes
light = a candle ; a small lamp ; a lantern

- One [dark|stormy|cold|quiet] night {h} woke up. What was that? {noise}! {h} pulled the blanket over {h.his} nose.
- {h} could not sleep one night. The moon was behind the clouds, and the house was [dark|still]. Then {h.he} heard it:
  {noise}! It came from [the kitchen|downstairs|behind the door].

- "[It must be|I think it is] {maybe}," {h.he} whispered. {h.His} heart beat [fast|like a drum]. {noise}! There it was
  again.
- {h} lay very still. "[What if it is {maybe}?|Oh no, it must be {maybe}!]" {h.he} thought. {h.He} counted to ten, but
  the noise did not stop. {noise}!

- {h} tiptoed to {f.intro}. "[Wake up|Please come], {f}! There is {maybe} in the house!" {f} [rubbed {f.his} eyes|put on
  {f.his} slippers]. "[Really? |Oh! ][Well, I have never met one|That would be something]," said {f}. "Let us go and
  see."
- "{f}!" called {h}. {f.Intro} came in with {light}. {h} told {f.him} about {maybe}. "[Shall we have a look|Should we
  not say hello to it]?" said {f}, and held out {f.his} hand.

- Hand in hand they went, step by step, with {light} in front of them. {h} opened the door [a crack|slowly]. And what
  did they see? It was only {what}!
- They crept along the wall. {noise}! The noise grew louder. {f} lifted the light, and {h} looked with one eye. There
  was {what}.

- {h} began to laugh, and {f} laughed too. ["Most monsters are small when you turn on the light," said {f}.|"I am glad
  that I looked," said {h}.] They drank a cup of warm milk, and {h} [slept until late in the morning|was asleep before
  the cup was empty].
- "[And I thought it was {maybe}!|Is that all?]" said {h}. They [took care of it|set it right], and then {f} tucked
  {h.him} in. The next time {h} heard a noise in the night, {h.he} [smiled|was not so afraid]. "I will go and see,"
  {h.he} said.
""",
    """friend
race / how = a running race / ran ; a race up the hill / climbed ; a race around the pond / ran ; a sack race / hopped ;
    a race to the old mill / ran ; a three-mile walk / walked ; a race through the fields / ran
prize = a golden cup ; a big honey cake ; a basket of pears ; a silver medal ; a shiny bell ; a new red scarf
who = an old woman who had dropped her basket ; a small boy who had hurt his knee ; a lamb that was stuck in a fence ; a
    little girl who had lost her mother ; an old man whose hat had blown into a tree ; a duckling that could not find
    its nest

- {when}, there was going to be {race}, and the prize was {prize}. {h} had practiced for weeks. So had {f.intro}, who
  was the fastest of all.
- Every year there was {race} near {outdoors}. {h} wanted to win {prize}. "[This year I will win|I have never won
  anything]," {h.he} told {f.intro}. "[We will see|I am fast too]," said {f}.

- "Ready, set, go!" They all {how} as fast as they could. At first {f} was ahead, and then {h} was ahead. {h} could
  [already see the finish|hear the people cheer].
- The horn blew, and off they went. {h} {how} [as never before|with all {h.his} strength]. Soon only {f} was left beside
  {h.him}, and then {h} was first!

- Then {h} saw someone {spot}. It was {who}. [Nobody else had stopped.|The others had all passed by.] {h} looked at the
  finish, and then {h.he} looked back.
- But {spot} {h.he} noticed {who}. "If I stop now, I will lose," thought {h}. {h.He} [slowed down|took three more
  steps]. "[But I cannot just go on|A prize can wait]," {h.he} thought.

- {h} stopped and helped. It took [a long while|so long that everyone else went by]. When {h.he} came to the finish, {f}
  had already won. {h} was the very last.
- So {h} stayed and helped, and did not leave until all was well. Then {h.he} went on, slowly now. {h.He} came in last,
  and {f} was holding {prize}.

- But {f} had heard what {h} had done. "[I was faster|I won the race]," said {f}, "but you did the better thing." And
  {f.he} shared {prize} with {h.him}. [Everyone clapped.|{h} was so surprised that {h.he} did not know what to say.]
- "[Are you sad|Do you mind]?" asked {f}. {h} thought about it. "[No|Not at all]," {h.he} said. "[Someone was happy that
  I came by|I would do it again]." "[Then I want you on my team|Then you won something too]," said {f}, and they went
  home [arm in arm|side by side].
""",
    """elder
gift / from_what / make = a warm scarf / red and blue wool / knitted ; a little boat / a piece of bark and a leaf /
    carved ; a picture book / old paper and some paint / made ; a lamp / a jar and a candle end / made ; a bird house /
    some old boards / built ; a necklace / shells and a string / made ; a soft pillow / a sack full of dry lavender /
    sewed ; a sun hat / long dry straw / made ; a little flute / a piece of reed / carved
cost = more than {h.he} could count ; ten coins, and {h.he} had two ; far too much

- It was nearly {f}'s birthday. {h} wanted to give {f.him} something [special|beautiful]. {h.He} went to the shop and
  saw {thing.a}, but it cost {cost}.
- {when}, {h} heard that {f.intro} had a birthday the next day. "I must find a present!" {h.he} thought. In the shop
  window there was {thing.a}. But it cost {cost}.

- {h} walked home slowly and sat down {spot}. "[I have nothing to give.|What can I do without money?]" {h.he} said. Only
  the wind answered.
- "[Poor me|What a pity|Oh well]," said {h}. {h.He} turned out {h.his} pockets and found a string, a stone and one old
  nut. You cannot buy much with that. {h.He} sat {spot} and thought.

- Then {h.he} had an idea. "If I cannot buy a present, I can make one!" All {h.he} needed was {from_what}. {h.He} worked
  [until it was dark|all afternoon], and {h.his} [fingers|arms] grew tired.
- Then {h} thought of {from_what} that {h.he} had at home. [Why not make something?|That was all {h.he} needed!] {h.He}
  started once, and it went wrong. {h.He} started again, and [this time it went better|the second time it was right].

- At last it was finished: {gift}, {make} by {h.himself}. It was not perfect. [It was a bit crooked, like a smile.|One
  side was longer than the other.] "What if {f} does not like it?" {h} thought, and gave it to {f.him} with both hands.
- When the sun came up, it was done. {h} had {make} {gift}. {h.He} [hid it behind {h.his} back|wrapped it in a leaf] and
  knocked at {f}'s door. {h.His} heart went thump, thump.

- {f} looked at it for a long time. Then {f.he} [smiled all over {f.his} face|wiped {f.his} eyes]. "You made this for
  me?" {f.he} said. "It is the best present I have ever had." [And {h} felt as tall as a tree.|They ate cake and sang
  until it was late.]
- "Happy birthday, {f}!" said {h}. {f} [laughed with joy|gave {h.him} a big hug]. "[Anyone can buy a thing|A shop has
  many things]," said {f}, "but only you could make this one." {f.He} kept it [always|for the rest of {f.his} life].
""",
    """friend
food = bread and cheese ; plum cake ; cold pancakes ; a basket of cherries ; egg sandwiches ; apple pie ; corn and
    butter
shelter = a hollow tree ; an old barn ; a small cave ; a fisherman's hut ; a bridge
game = told each other stories ; sang every song they knew ; made shadow animals with their hands ; counted the drops ;
    played that they were pirates ; built a tower out of pine cones

- {when}, {h} and {f.intro} packed {food} and set out for a picnic. {weather} "This will be the best day ever!" said
  {h}.
- "Let us have a picnic!" said {h} to {f.intro}. They took a blanket and {food}, and walked to {outdoors}. {weather}

- They had just sat down {spot} when the sky turned grey. Plop! A drop fell on {h}'s nose. Plop! Another fell on the
  blanket. Then it rained as if someone had tipped a bucket.
- But when they came to the best place, a cold wind began to blow. Dark clouds came over the hill. Boom! went the
  thunder, and the rain came down on {food}.

- "[Everything is ruined|This is the worst day ever|Our food will be soup]!" cried {h}. "[Come on|Quick]!" said {f}, and
  took {h.his} hand. They ran, with the blanket over their heads, until they came to {shelter}.
- "Run!" called {f}. They ran and slipped and ran again, and at last they found {shelter}. {h} was wet and [cross|close
  to tears]. "[My picnic is spoiled|I hate rain]," {h.he} said.

- It was dry in there, and a little dark. {f} spread out the blanket. "Who says that a picnic needs the sun?" {f.he}
  said. They ate what was left, and it tasted [wonderful|better than ever]. Then they {game}.
- {f} began to laugh. "You should see your hair!" {f.he} said. {h} looked at {f}, whose ears were dripping, and then
  {h.he} had to laugh too. They shared the last dry [bite|piece]. While the rain fell, they {game}.

- When they looked out again, the rain had stopped. A rainbow stood over {outdoors}, from one side to the other. "[I
  changed my mind|You know what]," said {h}. "[It was the best day after all|I am glad that it rained]."
- After an hour the sun came back, and the whole world shone. They jumped over every puddle on the way home, [or into
  it|and into some of them]. "Shall we do it again tomorrow?" asked {h}. "Only if it rains," said {f}.
""",
    """friend
food / one = berries / berry ; plums / plum ; nuts / nut ; cookies / cookie ; pears / pear ; cherries / cherry ;
    pancakes / pancake
ache = {h.His} belly began to hurt. ; {h.He} felt so full that {h.he} could not bend down. ; {h.His} belly was as tight
    as a drum.

- {when}, {h} found a big basket of {food} {spot}. A note said: "For everyone." {h} looked left, and {h.he} looked
  right. There was nobody there. "[Just one|I will take only one]," said {h}.
- {when}, {h} was asked to bring a basket of {food} to {f.intro}. They smelled so good! {h} sat down {spot} to rest.
  "Nobody will miss one {one}," {h.he} thought.

- One {one} was very small, so {h.he} ate another. And another. {h.He} ate [and ate|faster and faster], until the basket
  was [empty|nearly empty]. {ache}
- Munch! It was so sweet that {h.he} had to try one more. Then one more. When {h.he} looked again, there was [only one
  {one}|nothing] left. {ache}

- Just then {f.intro} came along the path. "Have you seen the {food}?" {f.he} asked. "We wanted to share them tonight."
  {h} turned [red|pale]. "I ate them," {h.he} said. "[All of them|Nearly all of them]. I am sorry."
- There came {f.intro}, looking hungry. {f.He} saw the basket, and then {f.he} saw {h}. "Oh," said {f}. {h} felt
  [terrible|very small]. "I wanted only one," {h.he} said, "and then I could not stop."

- {f} [was silent|frowned] for a bit. "[Well, they are gone|You cannot put them back]," {f.he} said. "But I know where
  we can get more, if you help." So {h} worked all the next day, and did not eat a single {one}.
- "What can I do?" asked {h}. "[You can help to fill it again|Work is good for a full belly]," said {f}. They worked
  together until the stars came out. By then the basket was full of {food} once more.

- That evening they all sat together, and everyone got the same. {h} gave {h.his} own share to {f}. "[It tastes better
  this way|I have had mine]," {h.he} said, and [everybody laughed|{f} grinned].
- {h} carried the basket to the others and gave it out, piece by piece. There was just enough for all. [And do you know
  what {h} found out? To give is even sweeter than to eat.|"Now I am really full," said {h}, although {h.he} had eaten
  only one.]
""",
)
