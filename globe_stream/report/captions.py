"""What to look for in each picture of a report."""

CAPTIONS = {
    "error by epoch": "Look for the curve falling below the dashed line, the truncated SVD with as "
    "many parameters: above it the bank is of no use. A curve still falling at its end asks "
    "for more epochs.",
    "error over costs": "The same errors against what they took. Compare runs where they reach the "
    "same height: the one further to the left was cheaper.",
    "schedule": "lambda is the share of the activation in the mixtures, from 0 (linear) to 1; it "
    "should climb to 1 in small steps. beta is the share of weight-aware targets, 0 in warm-up. "
    "The support, the number of atoms an expert uses, should settle on its pale target while the "
    "temperature comes to rest. A cross is an epoch whose step was taken back: a few are normal, "
    "one after the other ask for a larger damping.",
    "coherence": "1 means that two atoms are the same. Values that stay near 1 say that the bank "
    "is larger than it need be.",
    "rates": "Dotted: what the machine reached alone when the command began, with a large float32 "
    "product and reading the checkpoint. Look for flat arithmetic at half of its line or more. Far "
    "below it with reading near its own line, the disk holds the epochs up; far below both, other "
    "programs share the machine, or matrices are small.",
    "rates by stage": "Dotted: the machine alone. A stage should come near one of the two lines: "
    "the upper where it computes, the lower where it reads. The baseline and dictionary compute "
    "in double precision, at half of the line at most; stages of less than a second say little.",
    "error of every expert": "Look for rows or single cells that stand out: layers that do not "
    "fit the common bank, or damaged experts. A narrower bank scope helps the former.",
    "histogram of supports": "How many atoms experts use. A pile at the right edge says that the "
    "bank is too small for the wanted error.",
    "popularity": "Atoms at zero are used by no expert. A steep start means that a few atoms are "
    "in nearly every expert.",
    "eigenvalues of the Gram matrix": "How alike the experts are: the steeper the fall, the fewer "
    "atoms are needed. What lies to the right of the line is left out at the start.",
    "price and peak by stage": "A peak should end a little below its price; above it is a bug "
    "worth reporting.",
    "memory over time": "All points lie below the budget. Peaks just below their prices mean that "
    "the budget was used well.",
}
