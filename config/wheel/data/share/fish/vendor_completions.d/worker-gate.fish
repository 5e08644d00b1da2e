# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_worker_gate_global_optspecs
    string join \n config= set= h/help V/version
end

function __fish_worker_gate_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_worker_gate_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_worker_gate_using_subcommand
    set -l cmd (__fish_worker_gate_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c worker-gate -n "__fish_worker_gate_needs_command" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_needs_command" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_needs_command" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -s V -l version -d 'Print version'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "run" -d 'The daemon: checks, and opens and shuts the ways to its workers'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "check" -d 'Run every check once and print the report; 1 if a required one did not pass, or the config or the image is not as it must be'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "profile" -d 'The managed config'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "status" -d 'Every worker of every gate on this broker: admission, edge, reason, age of evidence, versions; 1 if one is not fit'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "hold" -d 'Keep workers from work until they are released, or for a time'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "release" -d 'End what an operator held; a quarantine whose cause stands goes on'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "recheck" -d 'Run the checks of workers now'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "events" -d 'Subscribe to the fanout exchange: print what comes, or hand it to a program or a webhook'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "audit" -d 'Read the audit log'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "doctor" -d 'Look for ways round the gate and for weak settings, and say how to mend each; 1 if one is serious'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "rehome" -d 'Give what is held for a worker that is gone for good to another one, in order and counted; 1 if the worker is not gone, or something is left'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "image" -d 'The image manifest: record it when an image is built, and verify it before the image is tagged'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "init" -d 'Write a first settings file, from what the broker and the workers that run say; 1 if no worker answers'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "config" -d 'The settings'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "completions" -d 'A script for your shell that completes worker-gate\'s commands'
complete -c worker-gate -n "__fish_worker_gate_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand run" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand run" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand run" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand check" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand check" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand check" -l json -d 'One JSON array of worker records'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand check" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -f -a "show" -d 'Its state, hashes and enforced keys'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -f -a "diff" -d 'What apply would change'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -f -a "apply" -d 'Merge the enforced keys, and keep every other byte'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and not __fish_seen_subcommand_from show diff apply help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from show" -l worker -d 'Only the profile of this worker [default: of all]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from show" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from show" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from show" -l json -d 'JSON'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from diff" -l worker -d 'Only the profile of this worker [default: of all]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from diff" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from diff" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from diff" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from apply" -l worker -d 'Only the profile of this worker [default: of all]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from apply" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from apply" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from apply" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "show" -d 'Its state, hashes and enforced keys'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "diff" -d 'What apply would change'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "apply" -d 'Merge the enforced keys, and keep every other byte'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -l worker -d 'Only this worker; `*` and `?` stand for any letters. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -l json -d 'One JSON array of worker records'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -l watch -d 'Look again every two seconds until interrupted'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -l quarantined -d 'Only workers that are quarantined'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand status" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l count -d 'How many workers you mean. Wanted where names are not written out, unless you are asked at a terminal' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l reason -d 'Why; it stands in the audit log, and of a hold in status' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l for -d 'The hold ends by itself after this time, such as 30m' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l all -d 'Every worker of every gate on this broker'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -l json -d 'One JSON array with what became of it'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand hold" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -l count -d 'How many workers you mean. Wanted where names are not written out, unless you are asked at a terminal' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -l reason -d 'Why; it stands in the audit log, and of a hold in status' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -l all -d 'Every worker of every gate on this broker'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -l json -d 'One JSON array with what became of it'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand release" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -l count -d 'How many workers you mean. Wanted where names are not written out, unless you are asked at a terminal' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -l reason -d 'Why; it stands in the audit log, and of a hold in status' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -l all -d 'Every worker of every gate on this broker'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -l json -d 'One JSON array with what became of it'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand recheck" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l type -d 'Only events of this type, such as worker-quarantined; `*` and `?` stand for any letters. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l worker -d 'Only events of this worker; `*` and `?` stand for any letters. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l since -d 'Begin with those of so long ago, such as 10m, that the broker still has: on Redis those on the stream. With --durable, pass over what is older' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l durable -d 'Let the broker keep what comes while this subscriber is away, under this name; one at a time may use a name' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l exec -d 'Run this program for each event, one at a time: the event as one line of JSON on its standard input, its main fields in WORKER_GATE_TYPE, _WORKER, _GATE, _ADMISSION, _EDGE, _REASON, _DETAIL, _REMEDY, _SEQ, _ID and _TIMESTAMP. No shell is asked; what it prints goes where ours would' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l time-limit -d 'A program that runs longer is ended, with its process group [default: 30s]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l webhook -d 'POST each event to this URL [default: $WORKER_GATE_WEBHOOK_URL, which other users of the machine do not see]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l body -d 'What is posted [default: event]' -r -f -a "event\t'The event as it was published'
alertmanager\t'An alert for Alertmanager\'s /api/v2/alerts, fired or resolved; only for events that make one'
chat\t'{"text": "..."} for Slack, Mattermost and Google Chat; not for health checks and heartbeats'"
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -l json -d 'One event a line, as it was published'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand events" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand audit" -l worker -d 'Only entries of this worker' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand audit" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand audit" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand audit" -l verify -d 'Verify its hash chain instead; 1 if it is broken'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand audit" -l exposed -d 'Only the tasks that quarantined workers had already started or prefetched, one a line'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand audit" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand doctor" -l lane -d 'A lane that no settings name any more: whether something waits in it, or is held for it. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand doctor" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand doctor" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand doctor" -l json -d 'One JSON array of findings'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand doctor" -l grants -d 'Print the rights that workers, producers and the gate need, as commands to run, and look at nothing else'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand rehome" -l to -d 'The worker that gets its messages; one of the settings\' workers' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand rehome" -l lane -d 'The lane of the worker that is gone, if settings do not name it [default: like the other\'s, with its own name]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand rehome" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand rehome" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand rehome" -l json -d 'One JSON object with the account'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand rehome" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and not __fish_seen_subcommand_from record verify help" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and not __fish_seen_subcommand_from record verify help" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and not __fish_seen_subcommand_from record verify help" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and not __fish_seen_subcommand_from record verify help" -f -a "record" -d 'Gather what the image is made of into the manifest (image.manifest), with the state built'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and not __fish_seen_subcommand_from record verify help" -f -a "verify" -d 'Try every rule, and promote the manifest from built to verified; 1 if a rule does not hold'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and not __fish_seen_subcommand_from record verify help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from record" -l base-image -d 'The tag of the image below, such as python:3.11-slim' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from record" -l worker -d 'As the user of this worker [default: of the first one]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from record" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from record" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from record" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from verify" -l offline -d 'Look versions up in this file instead of asking the registries: a package, such as npm:@openai/codex, and its versions on each line' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from verify" -l worker -d 'As the user of this worker [default: of the first one]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from verify" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from verify" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from verify" -l json -d 'One JSON array of rules'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "record" -d 'Gather what the image is made of into the manifest (image.manifest), with the state built'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Try every rule, and promote the manifest from built to verified; 1 if a rule does not hold'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand image; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l broker -d 'The broker\'s URL, as Celery has it' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l worker -d 'Only workers whose names match; `*` and `?` stand for any characters. Can be given often [default: those of this host]' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l edge -d 'The edge that each worker is to have [default: what suits its queue]' -r -f -a "route\t'RabbitMQ routes'
feed\t'The gate moves'"
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l output -d 'Where to write; - for standard output [default: --config, else /etc/worker-gate/worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -l force -d 'Write over a file that is there'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand init" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and not __fish_seen_subcommand_from show check help" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and not __fish_seen_subcommand_from show check help" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and not __fish_seen_subcommand_from show check help" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and not __fish_seen_subcommand_from show check help" -f -a "show" -d 'Every setting that holds, with the layer that it came from'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and not __fish_seen_subcommand_from show check help" -f -a "check" -d 'Every problem at once; 78 if there is one'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and not __fish_seen_subcommand_from show check help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from show" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from show" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from check" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from check" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "show" -d 'Every setting that holds, with the layer that it came from'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "check" -d 'Every problem at once; 78 if there is one'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand completions" -l config -d 'The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]' -r -F
complete -c worker-gate -n "__fish_worker_gate_using_subcommand completions" -l set -d 'One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often' -r
complete -c worker-gate -n "__fish_worker_gate_using_subcommand completions" -s h -l help -d 'Print help'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "run" -d 'The daemon: checks, and opens and shuts the ways to its workers'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "check" -d 'Run every check once and print the report; 1 if a required one did not pass, or the config or the image is not as it must be'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "profile" -d 'The managed config'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "status" -d 'Every worker of every gate on this broker: admission, edge, reason, age of evidence, versions; 1 if one is not fit'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "hold" -d 'Keep workers from work until they are released, or for a time'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "release" -d 'End what an operator held; a quarantine whose cause stands goes on'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "recheck" -d 'Run the checks of workers now'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "events" -d 'Subscribe to the fanout exchange: print what comes, or hand it to a program or a webhook'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "audit" -d 'Read the audit log'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "doctor" -d 'Look for ways round the gate and for weak settings, and say how to mend each; 1 if one is serious'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "rehome" -d 'Give what is held for a worker that is gone for good to another one, in order and counted; 1 if the worker is not gone, or something is left'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "image" -d 'The image manifest: record it when an image is built, and verify it before the image is tagged'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "init" -d 'Write a first settings file, from what the broker and the workers that run say; 1 if no worker answers'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "config" -d 'The settings'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "completions" -d 'A script for your shell that completes worker-gate\'s commands'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and not __fish_seen_subcommand_from run check profile status hold release recheck events audit doctor rehome image init config completions help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "show" -d 'Its state, hashes and enforced keys'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "diff" -d 'What apply would change'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "apply" -d 'Merge the enforced keys, and keep every other byte'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "record" -d 'Gather what the image is made of into the manifest (image.manifest), with the state built'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from image" -f -a "verify" -d 'Try every rule, and promote the manifest from built to verified; 1 if a rule does not hold'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "show" -d 'Every setting that holds, with the layer that it came from'
complete -c worker-gate -n "__fish_worker_gate_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "check" -d 'Every problem at once; 78 if there is one'
