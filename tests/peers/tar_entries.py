# Lists a gzip tar as Python's tarfile unpacks it: one JSON object, name -> [kind, sha256 of the content].
import hashlib, json, sys, tarfile

found = {}
with tarfile.open(sys.argv[1], "r:gz") as tar:
    for member in tar:
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        if member.isreg():
            found[name] = ["file", hashlib.sha256(tar.extractfile(member).read()).hexdigest()]
        else:
            found[name] = ["other", member.type.decode()]
print(json.dumps(found))
