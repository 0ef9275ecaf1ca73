#!/bin/bash
# A real Slurm of one node with two GPUs that are none, on loopback, for the tests and for trying slurm/ by hand (as root):
#   tests/slurm_cluster.sh start /tmp/slurm && export SLURM_CONF=/tmp/slurm/slurm.conf      # then sbatch, squeue, ...
#   tests/slurm_cluster.sh stop /tmp/slurm
# Needs munge, slurmctld, slurmd and slurm-client. Jobs of partition high preempt those of partition low.
set -euo pipefail
command=${1:?start or stop} folder=${2:?a folder for its files}

if [ "$command" = stop ]; then
    for daemon in slurmd slurmctld munged; do
        [ ! -f "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" || true
    done
    exit
fi

host=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
mkdir -p "$folder"/{state,spool}
head -c 128 /dev/urandom > "$folder/munge.key"
chmod 700 "$folder" "$folder/munge.key"
cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket=$folder/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
CONF
printf 'NodeName=%s Name=gpu File=%s\n' "$host" /dev/null "$host" /dev/zero > "$folder/gres.conf"

munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -c
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format %T --partition low 2> /dev/null)" = idle ]; then
        exit 0
    fi
    sleep 0.5
done
tail -n 5 "$folder"/slurm*.log >&2
exit 1
