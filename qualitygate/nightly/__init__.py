"""The nightly job: score what is new, look for drift, calibrate again, and promote the new gate or say why not.

    lock → canary → manifest → score → drift → calibrate → guardrails → promote or refuse → upkeep → report → notify

`job` runs the steps in order; each has a module, writes what it found below OUTPUT/nights/<night>/, and is not done
again by a second start of the same night.
"""
