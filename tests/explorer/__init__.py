"""An explorer of interleavings and crashes over the real functions, the real job and the real state machine's definition.

What is real: every handler of ``fedgrass/cloud/rounds``, the job (``fedgrass.cloud.aggregator.job``), a person's commands
(``fedgrass.cloud.aggregator.manual_release``) and ``state_machine.asl.json``, which is interpreted. What stands in: the
services, in memory (`services`, `dynamo`); a call of any of them is a step at which the schedule may switch to another process,
end one, or disturb something (`scheduler`, `world`).

Disturbances: StopExecution at any step; a state's time running out; a process ended at any step (a function, which AWS
repeats; the job, by SIGTERM or SIGKILL; a person's command); a job run a second time beside the first; events that are lost,
late, or come twice; writes that meet a transaction or the table's limits; a process that is held up while all others go on.

A schedule is a scenario, a plan of what happens at which step, and a seed: printed with each violation, it runs the same way
again.

What must hold (`invariants`), when all has come to rest and the sweep has run, and again after one more undisturbed round:

1. No two rounds are open at any time; none is left open; an outcome, once written, stays (but for a person's release).
2. The base of the next round is the newest adopted model, and all its objects are there.
3. No device of the fleet ever had a model that was not released; the fleet has the newest that was; canaries keep none that
   was not; one that the devices refuse is taken back.
4. Nobody's component is lost from a deployment.
5. A report is there exactly for rounds that their job ended, and says what the record says; so does the registry, once.
6. No update is in two adopted models; none that is in a model is recorded as late; a round counts what its parts say. In a stream
   of rounds that never wait none is lost, and what is at hand is known.
7. Nothing is announced while no round collects.
8. Contention alone fails no execution and reaches no person as an error of AWS.
9. A round can run next.

``python -m tests.explorer --schedules N`` is the long form; `test_explorer` the short one.
"""
