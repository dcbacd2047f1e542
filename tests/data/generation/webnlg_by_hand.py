"""Ten entries of WebNLG as the protocol has them, written by hand from the triples in the data folder.

Each line of `lines` is one segment; the special token it begins with is its kind.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ByHand:
    """The entry at `index` of a split, counted without those that have no good reference."""

    split: str
    index: int
    lines: str
    references: tuple[str, ...]
    group: str | None = None


TEN = (
    ByHand(
        "train",
        0,
        """\
<bos_webnlg>
<subject>Aarhus_Airport
<property>cityServed
<object>"Aarhus, Denmark"
<target_webnlg>""",
        ("The Aarhus is the airport of Aarhus, Denmark.", "Aarhus Airport serves the city of Aarhus, Denmark."),
    ),
    ByHand(  # the first of its five texts is marked toFix
        "train",
        301,
        """\
<bos_webnlg>
<subject>Alan_Bean
<property>almaMater
<object>"UT Austin, B.S. 1955"
<target_webnlg>""",
        (
            "Alan Bean graduated in 1955 from UT Austin with a B.S.",
            "Alan Bean graduated from UT Austin in 1955 with a B.S.",
            "Alan Bean graduated from UT Austin in 1955 with a Bachelor of Science degree.",
            "Alan Bean received a Bachelor of Science degree at the University of Texas at Austin in 1955.",
        ),
    ),
    ByHand(
        "test",
        1,
        """\
<bos_webnlg>
<subject>Adolfo_Su\u00e1rez_Madrid\u2013Barajas_Airport
<property>location
<object>"Madrid, Paracuellos de Jarama, San Sebasti\u00e1n de los Reyes and Alcobendas"
<target_webnlg>""",
        (
            "Adolfo Su\u00e1rez Madrid\u2013Barajas Airport can be found in Madrid, Paracuellos de Jarama, "
            "San Sebasti\u00e1n de los Reyes and Alcobendas.",
            "Adolfo Suarez Madrid-Barajas airport is located at Madrid, Paracuellos de Jarama, "
            "San Sebasti\u00e1n de los Reyes and Alcobendas.",
            "Adolfo Suarez Madrid-Barajas Airport is located in Madrid, Paracuellos de Jarama, "
            "San Sebastian de los Reyes and Alcobendas.",
        ),
        "SEEN",
    ),
    ByHand(  # two spaces in the object, as in the file
        "test",
        196,
        """\
<bos_webnlg>
<subject>Bakewell_pudding
<property>served
<object>"Warm  or cold"
<target_webnlg>""",
        ("Bakewell pudding can be served either warm or cold.", "Bakewell pudding can be served warm or cold."),
        "SEEN",
    ),
    ByHand(
        "validation",
        267,
        """\
<bos_webnlg>
<subject>Alan_B._Miller_Hall
<property>owner
<object>College_of_William_&_Mary
<subject>Alan_B._Miller_Hall
<property>location
<object>Williamsburg,_Virginia
<target_webnlg>""",
        (
            "Alan B Miller Hall is owned by The College of William and Mary and located in Williamsburg, Virginia.",
            "Alan B. Miller Hall in Williamsburg, Virginia is owned by The College of William and Mary.",
            "The College of William and Mary is the owner of the Alan B. Miller Hall in Williamsburg, Virginia.",
        ),
    ),
    ByHand(
        "train",
        3522,
        """\
<bos_webnlg>
<subject>Ajoblanco
<property>ingredient
<object>Almond
<subject>Almond
<property>order
<object>Rosales
<subject>Almond
<property>order
<object>Rosids
<target_webnlg>""",
        (
            "Almond is part of the order of Rosids and a member of the Rosales order. "
            "It is an ingredient of ajoblanco.",
            "Almond is an ingredient of Ajoblanco and are from the order of Rosids and Rosales.",
            "Almonds are a member of the Rosales, or Rosids order, and are an ingredient of ajoblanco.",
        ),
    ),
    ByHand(
        "validation",
        650,
        """\
<bos_webnlg>
<subject>Indonesia
<property>leaderName
<object>Jusuf_Kalla
<subject>Bakso
<property>region
<object>Indonesia
<subject>Bakso
<property>country
<object>Indonesia
<subject>Bakso
<property>ingredient
<object>Celery
<target_webnlg>""",
        (
            "Bakso comes from Indonesia, and celery is a main ingredient. Jasuf Kalla is a leader in Indonesia.",
            "Celery is an ingredient of Bakso, a dish from the country of Indonesia, where Jusuf Kalla is a leader.",
            "Bakso ( which contains celery) is a dish found in Indonesia where it originated. "
            "One of the country's leaders is Jusuf Kalla.",
        ),
    ),
    ByHand(
        "test",
        1861,
        """\
<bos_webnlg>
<subject>Uruguay
<property>leaderName
<object>Ra\u00fal_Fernando_Sendic_Rodr\u00edguez
<subject>Alfredo_Zitarrosa
<property>deathPlace
<object>Montevideo
<subject>Montevideo
<property>country
<object>Uruguay
<subject>Montevideo
<property>leaderName
<object>Daniel_Mart\u00ednez_(politician)
<subject>Uruguay
<property>language
<object>Spanish_language
<target_webnlg>""",
        (
            "Alfredo Zitarrosa died in Montevideo, Uruguay. Daniel Martinez is a political leader in Montevideo, "
            "and Raul Fernando Sendic Rodriguez is a leader in Uruguay, where Spanish is spoken.",
            "Alfredo Zitarrosa died in Montevideo, the leader of which, is Daniel Martinez. Montevideo is in Uruguay, "
            "where Spanish is the language and where Ra\u00fal Fernando Sendic Rodr\u00edguez is the leader.",
            "Ra\u00fal Fernando Sendic Rodr\u00edguez is the leader of Spanish speaking, Uruguay. "
            "Daniel Martinez is the leader of Montevideo, the final resting place of Alfredo Zitarrosa.",
        ),
        "UNSEEN",
    ),
    ByHand(
        "validation",
        826,
        """\
<bos_webnlg>
<subject>Alan_Bean
<property>was a crew member of
<object>Apollo_12
<subject>Alan_Bean
<property>nationality
<object>United_States
<subject>Apollo_12
<property>operator
<object>NASA
<subject>Apollo_12
<property>commander
<object>David_Scott
<subject>Alan_Bean
<property>birthPlace
<object>Wheeler,_Texas
<subject>Alan_Bean
<property>status
<object>"Retired"
<target_webnlg>""",
        (
            "American Alan Bean was a member of NASA's Apollo 12 which was commanded by David Scott. "
            "Bean, who was born in Wheeler, Texas, is now retired.",
            "American Alan Bean was born in Wheeler, Texas and is retired. He was on the crew of Apollo 12, "
            "whose operator was NASA and David Scott was the commander of Apollo 12.",
            "Alan Bean is originally from Wheeler, Texas and joined NASA where he became a crew member of Apollo 12. "
            "David Scott was his commander and Mr Bean is now retired.",
        ),
    ),
    ByHand(
        "test",
        962,
        """\
<bos_webnlg>
<subject>Apollo_12
<property>backup pilot
<object>Alfred_Worden
<subject>Alan_Bean
<property>was a crew member of
<object>Apollo_12
<subject>Alan_Bean
<property>nationality
<object>United_States
<subject>Apollo_12
<property>operator
<object>NASA
<subject>Alan_Bean
<property>occupation
<object>Test_pilot
<subject>Apollo_12
<property>commander
<object>David_Scott
<subject>Alan_Bean
<property>birthPlace
<object>Wheeler,_Texas
<target_webnlg>""",
        (
            "Alan Bean was born in Wheeler, Texas and is an American. He was a crew member of Apollo 12 and a test "
            "pilot which was operated by NASA. Apollo 12 was commanded by David Scott and Alfred Worden was the "
            "backup pilot.",
            "Alan Bean is a US national, who was born in Wheeler, Texas. He was a test pilot and part of the crew of "
            "the NASA operated Apollo 12. Apollo 12 was commanded by David Scott, and had Alfred Worden as a backup "
            "pilot.",
            "Alan Bean is a US national, who was born in Wheeler, Texas. He served as a test pilot and was part of "
            "the crew of NASA operated Apollo 12. Other crew of Apollo 12 included Alfred Worden (back up pilot) and "
            "David Scott (commander).",
        ),
        "SEEN",
    ),
)
