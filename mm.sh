. /tmp/w/breaker_work/env.sh
T6="--set data.tile_px=64 --set training.minutes=null --set training.steps=8 --set training.batch=2 --set data.workers=0 --set training.validations=2 --set training.checkpoint_minutes=0"
cpl(){ rm -rf $2; mkdir $2; (cd $1; find . -type d) | while read d; do mkdir -p "$2/$d"; done; (cd $1; find . -type f) | while read f; do case $f in *.safetensors) ln "$1/$f" "$2/$f";; *) cp "$1/$f" "$2/$f";; esac; done; }
echo "== manifest missing, other settings and data"
cpl k0 kx; rm kx/manifest.json
ps train d40 --out kx $T6 --set seed=7 --set training.lr=0.1 --set training.batch=4 --set training.steps=9 > kx.txt 2>&1; echo rc=$?; cat kx.txt | tail -30; cat kx/history.csv | cut -c1-80; grep -E "seed|lr:|steps" kx/settings.yaml; grep -m3 '"key"' kx/manifest.json; tail -5 kx/events.jsonl
echo "== no ckpt"
cpl k0 kx; rm -r kx/checkpoints; ps train d24 --out kx $T6 > kx.txt 2>&1; echo rc=$?; head -8 kx.txt;  cut -c1-60 kx/history.csv; 
echo "== no sha"
cpl k0 kx; rm kx/checkpoints/*.sha256; ps train d24 --out kx $T6 > kx.txt 2>&1; echo rc=$?; head -8 kx.txt;  cut -c1-60 kx/history.csv; ls kx/checkpoints
