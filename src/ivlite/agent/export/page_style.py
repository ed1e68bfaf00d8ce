"""The style and the script of a report: what it says is in page.py."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfbfa;--card:#fff;--ink:#1c1d20;--soft:#5d6068;--line:#e3e3e0;--tint:#f1f1ee;
--link:#1d4ed8;--good:#15803d;--bad:#b42318;--mark:#d97706;--seen:#93b4f5;--shadow:0 1px 2px rgb(0 0 0/.05)}
@media (prefers-color-scheme:dark){:root{--paper:#131417;--card:#1b1d21;--ink:#e9e9e7;--soft:#a2a6ae;--line:#2d3036;
--tint:#24272c;--link:#8ab4ff;--good:#5ecb87;--bad:#ff8a7a;--mark:#f5b04c;--seen:#3b5488;--shadow:none}}
*{box-sizing:border-box}
[hidden]{display:none!important}
html{-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
.page{max-width:76rem;margin:0 auto;padding:2rem 1.25rem 4rem}
header{max-width:48rem;margin-bottom:1.75rem}
h1{font-size:1.6rem;line-height:1.25;font-weight:650;letter-spacing:-.012em;margin:0 0 .5rem;white-space:pre-line}
h2{font-size:.8rem;font-weight:650;letter-spacing:.06em;text-transform:uppercase;color:var(--soft);margin:2.25rem 0 .75rem}
p{margin:.5rem 0}
a{color:var(--link);text-decoration:none}
a:hover{text-decoration:underline}
:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:3px}
.soft{color:var(--soft)}
.small{font-size:.875rem}
.time{font-variant-numeric:tabular-nums;white-space:nowrap}
.main{display:grid;grid-template-columns:minmax(0,1fr);gap:0 2.5rem}
.answer{font-size:1.1rem;white-space:pre-line}
.id{font-size:.75em;font-weight:600;background:var(--tint);border-radius:.3rem;padding:.1em .4em;white-space:nowrap}
.state{display:inline-block;font-size:.78rem;font-weight:600;border:1px solid currentColor;border-radius:1rem;
padding:0 .55rem;line-height:1.5;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}
ol.claims,ol.steps,ul.cards{list-style:none;padding:0;margin:0}
.claims>li{border-top:1px solid var(--line);padding:.75rem 0}
.claims>li:last-child{border-bottom:1px solid var(--line)}
.claims p{margin:.35rem 0 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1rem;align-items:start}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;box-shadow:var(--shadow);overflow:hidden}
.card:target{border-color:var(--link);box-shadow:0 0 0 1px var(--link)}
.card .text{padding:.6rem .8rem .75rem}
.card p{margin:.25rem 0 0}
.frames{display:grid;grid-template-columns:1fr 1fr;gap:2px;background:var(--line)}
.frames>*{display:block;min-width:0;background:var(--tint)}
.frames>:first-child{grid-column:1/-1}
.frames img{display:block;width:100%;height:auto;max-height:14rem;object-fit:contain}
.player{margin:0 0 1.5rem}
figure{margin:0 0 .75rem}figcaption{margin-top:.35rem}
video{display:block;width:100%;max-height:70vh;background:#000;border-radius:.6rem}
.strip{position:relative;height:1.1rem;background:var(--tint);border-radius:.3rem;overflow:hidden;margin:.4rem 0 .2rem}
.strip i{position:absolute;top:0;bottom:0;background:var(--seen);min-width:1px}
.strip a{position:absolute;top:0;bottom:0;background:var(--mark);min-width:3px}
.ends{display:flex;justify-content:space-between}
.key::before{content:"";display:inline-block;width:.7em;height:.7em;border-radius:2px;margin:0 .35em 0 0;background:var(--c)}
.key+.key{margin-left:1rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{text-align:left;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line);font-weight:400;vertical-align:top}
th{color:var(--soft);font-size:.8rem}
td.n,th.n{text-align:right}
details{border-top:1px solid var(--line);padding:.6rem 0}
details>summary{cursor:pointer;font-weight:600}
details>*+*{margin-top:.75rem}
.cards+details,p+details{margin-top:1rem}
.steps>li{display:grid;grid-template-columns:5.5rem minmax(0,1fr);gap:.75rem;padding:.45rem 0;font-size:.9rem}
.steps>li>span:first-child{color:var(--soft)}
pre{margin:0;font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1.25rem;margin:0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0}
footer{margin-top:3rem}
@media (min-width:64rem){.with-video .main{grid-template-columns:minmax(0,1fr) minmax(0,30rem)}
.with-video .player{grid-column:2;grid-row:1/span 20}.with-video .stick{position:sticky;top:1rem}.with-video .body{grid-column:1;grid-row:1}}
@media (max-width:63.99rem){.with-video .stick{position:sticky;top:0;z-index:1;background:var(--paper);padding-bottom:.5rem}
.with-video video{max-height:38vh}.player{display:contents}html{scroll-padding-top:40vh}}
@media (max-width:30rem){.page{padding:1.25rem .9rem 3rem}h1{font-size:1.3rem}
.steps>li{grid-template-columns:1fr;gap:.1rem}td,th{padding-right:.5rem}}
@media print{:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--link:#000;--shadow:none}
.player,.noprint{display:none}.page{max-width:none;padding:0}.card,.claims>li{break-inside:avoid}
.strip,.strip *{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@media print and (prefers-color-scheme:dark){:root{--tint:#eee;--good:#15803d;--bad:#b42318;--mark:#d97706;--seen:#93b4f5}}
"""

# Times seek the player beside the report, and a span ends where it ends; of several videos one is shown. Without the script,
# all are, and links open the video at their time.
SCRIPT = """
(() => {
  let until = Infinity, current = null;
  const videos = [...document.querySelectorAll('video')];
  const show = video => videos.forEach(each => { each.closest('figure').hidden = each !== video; });
  const play = link => {
    const video = videos.find(each => each.dataset.video === link.dataset.video);
    if (!video || video.hidden) return false;
    if (current && current !== video) current.pause();
    show(video);
    current = video;
    until = link.dataset.end ? Number(link.dataset.end) : Infinity;
    const seek = () => { video.currentTime = Number(link.dataset.start) + 0.001; };
    if (video.readyState) seek(); else { video.addEventListener('loadedmetadata', seek, {once: true}); video.load(); }
    const started = video.play();
    if (started) started.catch(() => {});
    const box = video.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) video.scrollIntoView({block: 'start'});
    return true;
  };
  document.addEventListener('click', event => {
    const link = event.target.closest('a[data-start]');
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && play(link)) event.preventDefault();
  });
  show(videos[0]);
  for (const video of videos) {
    video.addEventListener('timeupdate', () => {
      if (video === current && video.currentTime >= until) { video.pause(); until = Infinity; }
    });
    const failed = () => {
      video.hidden = true;
      video.closest('figure').querySelector('[data-failed]').hidden = false;
    };
    video.addEventListener('error', failed);
    if (video.error) failed();
  }
  const all = [...document.querySelectorAll('details')];
  let closed = [];
  addEventListener('beforeprint', () => { closed = all.filter(d => !d.open); closed.forEach(d => { d.open = true; }); });
  addEventListener('afterprint', () => { closed.forEach(d => { d.open = false; }); });
})();
"""
