"""The life of a run, from the claim to its end. Read from the top down; each module imports only those below it.

inline         `run_inline`, and the host without Redis
activation     `Activation`: turn by turn, until the run ends or its host releases it
decide         what a finished or failed turn leads to, and the events that announce it
turn           one turn: ask the model, run the tools, see whether the run is done
sub_tasks      the ends of children as the parent's model reads them
waiting        what a parked turn awaits, and how it is finished
calls          model calls and tool calls as steps
steps          `Steps.take`: recall, guards, events, record
user_step      steps of the user's own
children       the tasks that a run spawns
step           `Step`: what is to be done once
run_state      what the steps and turns of a run share
host           `Host`: what a run needs from the place where it lives
definition     what the lifecycle needs to know of an agent
guard          `Guard`: sees each step before and after it is taken
progress       the events around an operation
snapshot       what has changed in a context since it was stored
window         what a request leaves out to stay within the context window
fidelity       whether a context comes back as it was
conversion     a context of the base class for an agent with a class of its own
codec          a context as JSON
failure        whether and when a failed turn is tried again
outcome        `Outcome`: what a turn leads to
"""
