#!/bin/bash
# Batch script of a simulated site; Balsam's agent fills it in for every `balsam queue submit` and runs it.
# It starts the launcher and, however that ends, leaves no job process and no lease on a job behind.

export BALSAM_SITE_PATH='{{ balsam_site_path }}'
export ENSEMBLE_NODES='{{ num_nodes }}'
export PATH='{{ balsam_bin }}':"$PATH"
cd "$BALSAM_SITE_PATH" || exit 1

# The signal that ends a batch job is for the launcher; this script stays to clean up.
trap 'kill -TERM "$launcher" 2>/dev/null' TERM INT HUP

{{ launcher_cmd }} -j '{{ job_mode }}' -t '{{ wall_time_min }}' \
{% for key, value in filter_tags.items() %} --tag '{{ (key ~ "=" ~ value) | replace("'", "'\\''") }}' {% endfor %} \
{{ partitions }} &
launcher=$!
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done

python -P -m ensemble.sites.after_launcher
