# Runs in the guest: fetches by each program, with its retries off, and prints the status, the milliseconds
# and the output of each. With the word `refused` behind it, also what the policy refuses: fetches
# from another host, and from another port.
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 GIT_TERMINAL_PROMPT=0
export NODE_EXTRA_CA_CERTS=/tmp/ca.pem PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
cat /tmp/ca.pem >>/etc/ssl/certs/ca-certificates.crt
dhclient -1 "$(basename /sys/class/net/e*)" || exit 1

now() { date +%s%3N; }

# run NAME COMMAND...
run() {
    name=$1
    shift
    begin=$(now)
    output=$(cd /tmp && "$@" 2>&1 </dev/null)
    status=$?
    printf '@@ %s %s %s\n%s\n' "$name" "$status" "$(($(now) - begin))" "$output"
}

apt_update() {
    echo "deb [trusted=yes] https://$1/debian stable main" >/tmp/sources.list
    apt-get update -q -o Dir::Etc::sourcelist=/tmp/sources.list -o Dir::Etc::sourceparts=- \
        -o Acquire::Retries=0 -o Acquire::Languages=none -o APT::Sandbox::User=root \
        -o APT::Update::Error-Mode=any
}

# fetch SUFFIX HOST GIT_HOST PIP_HOST NPM_HOST: from the first host by apt, curl and wget.
fetch() {
    run "apt$1" apt_update "$2"
    run "curl$1" curl --silent --show-error --fail --retry 0 "https://$2/debian/dists/stable/Release"
    run "wget$1" wget --progress=dot:mega --tries=1 --output-document=- "https://$2/debian/dists/stable/Release"
    run "git$1" git clone --quiet "https://$3/capsa/hello.git" "/tmp/git$1"
    # Of an index that it cannot reach, pip prints the name with `-vv` only.
    what="https://$4/packages/hello_capsa-1.0-py3-none-any.whl"
    [ -n "$1" ] || what=hello-capsa
    run "pip$1" pip install --quiet --retries 0 --no-deps --target "/tmp/pip$1" "$what"
    run "npm$1" npm install --prefix "/tmp/npm$1" --fetch-retries=0 --no-audit --no-fund \
        --no-update-notifier --registry "https://$5" hello-capsa
}

fetch "" deb.debian.org github.com pypi.org registry.npmjs.org
run http curl --silent --show-error --fail http://deb.debian.org/debian/dists/stable/Release
run files cat /tmp/git/hello /tmp/pip/hello_capsa.py /tmp/npm/node_modules/hello-capsa/index.js
[ "$1" = refused ] || exit 0
other=mirror.example.net
fetch -name $other $other $other $other
fetch -port deb.debian.org:8443 github.com:8443 files.pythonhosted.org:8443 registry.npmjs.org:8443
