"""Whether one more round fits the budget of privacy: asked when it is to open, and when the one before it is closed."""

from __future__ import annotations

from fedgrass.protocol.fleet_state import FleetState
from fedgrass.protocol.messages import Cohort
from fedgrass.protocol.privacy import PrivacyLedger, Tree
from fedgrass.protocol.privacy_settings import Privacy
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.settings import FleetSettings


def tree_of_next(
    settings: FleetSettings, state: FleetState, before: RoundRecord | None, cohort: Cohort | None = None
) -> Tree | None:
    """Return the tree of noise that the next round is a step of: the last round's, or a new one; None if it has no part in one.

    Parameters
    ----------
    settings
        The next round's.
    state
        The fleet's.
    before
        Its last round; None if it has had none.
    cohort
        Whom the next round asks; None where that is not known yet: the next piece of the circle then, if one is left. (One that
        has too few devices is passed over, and so a circle may end earlier than this says.)
    """
    rounds, privacy, found = settings.strategy.tree, settings.privacy, state.privacy.tree
    if not rounds or settings.task != "fit" or state.model is None:
        return None
    steps = 1
    # It goes on only from the model that its last step made, and with devices of the same circle. What a round that was held has
    # shown is in no later step, so the noise that hid it must be in none either.
    if found is not None and before is not None and found.goes_on(privacy, rounds) and found.last == state.last:
        made = before.version == state.model.version
        steps = found.steps + 1 if made and _same_circle(before.cohort, cohort, rounds) else 1
    return Tree(
        rounds=rounds,
        steps=steps,
        last=state.last + 1,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
    )


def _same_circle(before: Cohort, cohort: Cohort | None, rounds: int) -> bool:
    if cohort is not None:
        return before.salt == cohort.salt
    # Exact: pieces are equal, and their number is a power of two.
    return before.begin + 2 / rounds <= 1


def beyond_budget(ledger: PrivacyLedger, settings: FleetSettings, tree: Tree | None) -> str:
    """Say why one more round would pass the budget; empty if it fits, if there is no budget, or if only the accountant can tell.

    Parameters
    ----------
    ledger
        What is spent.
    settings
        The next round's.
    tree
        The tree of noise that it is the last step of so far, if it has part in one.

    Examples
    --------
    >>> from fedgrass.protocol.privacy_settings import Privacy
    >>> privacy = Privacy(mode="central", noise_multiplier=1.0, epsilon_budget=3.0)
    >>> beyond_budget(PrivacyLedger(), FleetSettings(privacy=privacy), None)
    'with one more round ε would be 4.377 at δ = 1e-05, of 3 (privacy.epsilon_budget)'
    """
    privacy = settings.privacy
    # An evaluation sends figures and no update: the ledger counts updates. Without noise there is no ε to hold against a budget.
    if privacy.epsilon_budget <= 0 or privacy.mode == "none" or settings.task == "evaluate":
        return ""
    projected = ledger.projected(privacy, settings.sampled_fraction, tree)
    if projected is not None:
        return one_more_beyond(projected, privacy)
    # What has been judged is spent already, and no round takes anything of it back.
    if ledger.epsilon is not None and ledger.delta == privacy.delta and ledger.epsilon > privacy.epsilon_budget:
        return f"ε is {ledger.epsilon:.4g} at δ = {privacy.delta:g} already, {_budget(privacy)}"
    return ""


def one_more_beyond(epsilon: float, privacy: Privacy) -> str:
    """Say that one more round would pass the budget; empty if it fits.

    Parameters
    ----------
    epsilon
        With that round.
    privacy
        The round's settings.
    """
    if epsilon <= privacy.epsilon_budget:
        return ""
    return f"with one more round ε would be {epsilon:.4g} at δ = {privacy.delta:g}, {_budget(privacy)}"


def _budget(privacy: Privacy) -> str:
    return f"of {privacy.epsilon_budget:g} (privacy.epsilon_budget)"


def beyond_budget_next(settings: FleetSettings, state: FleetState, before: RoundRecord | None) -> str:
    """Say why the fleet's next round would pass the budget, as far as that is known before it opens; empty if it may open.

    Parameters
    ----------
    settings
        The next round's.
    state
        The fleet's.
    before
        Its last round; None if it has had none.
    """
    return beyond_budget(state.privacy, settings, tree_of_next(settings, state, before))
