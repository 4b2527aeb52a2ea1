PRAGMA application_id = 1701601646;
PRAGMA user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE attempts (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    lane NOT NULL,
    attempts TEXT NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition, offset)
) WITHOUT ROWID;
INSERT INTO "attempts" VALUES('mails','orders',1,1,X'6C617465','{"offset":1,"count":2,"due_ms":1795621903555,"first_failed_ms":1795617989919,"timeouts":0,"history":[[1,1795617989919,0.0,0.0,9e-6,"OSError","host-1"],[2,1795617989922,0.0,0.003,0.000011,"OSError","host-1"]],"lane":"bGF0ZQ==","elapsed_ms":3913631}');
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL,
    consumer_group TEXT NOT NULL,
    letter INTEGER,
    operation INTEGER,
    detail TEXT
);
INSERT INTO "audit" VALUES(1,1795617989926,'ada','replay','mended','stock',1,1,NULL);
INSERT INTO "audit" VALUES(2,1795617989929,'stock@host-1','resolved','','stock',1,1,NULL);
INSERT INTO "audit" VALUES(3,1795617989932,'bob','archive','nobody needs it','stock',2,2,NULL);
INSERT INTO "audit" VALUES(4,1795617989935,'bob','pause','the server is out','mails',NULL,NULL,NULL);
INSERT INTO "audit" VALUES(5,1795617989946,'ada','replay','later','stock',3,3,NULL);
CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    base_offset INTEGER NOT NULL,
    count INTEGER NOT NULL,
    base_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    appended_ms INTEGER NOT NULL,
    records BLOB NOT NULL
);
INSERT INTO "batch" VALUES(1,'orders',0,0,8,0,705,1795617989914,X'9895C41001A2132C25187F7AB17D92513A27AFD8C403616461C41F7B22637573746F6D6572223A22616461222C227175616E74697479223A317DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFD9C403626F62C41F7B22637573746F6D6572223A22626F62222C227175616E74697479223A307DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFDAC403636964C41F7B22637573746F6D6572223A22636964222C227175616E74697479223A327DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFDDC403616461C41F7B22637573746F6D6572223A22616461222C227175616E74697479223A357DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFDEC403626F62C41F7B22637573746F6D6572223A22626F62222C227175616E74697479223A367DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFDFC403636964C41F7B22637573746F6D6572223A22636964222C227175616E74697479223A307DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFE2C403616461C41F7B22637573746F6D6572223A22616461222C227175616E74697479223A337DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFE3C403626F62C41F7B22637573746F6D6572223A22626F62222C227175616E74697479223A327DCF000001A2132C2518C4148300C4074F72646572656401C40473686F700200');
INSERT INTO "batch" VALUES(2,'orders',1,0,4,0,358,1795617989914,X'9495C41001A2132C25187F7AB17D92513A27AFDBC40364616EC41F7B22637573746F6D6572223A2264616E222C227175616E74697479223A307DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFDCC4046C617465C4207B22637573746F6D6572223A226C617465222C227175616E74697479223A317DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFE0C40364616EC4207B22637573746F6D6572223A2264616E222C227175616E74697479223A2D317DCF000001A2132C2518C4148300C4074F72646572656401C40473686F70020095C41001A2132C25187F7AB17D92513A27AFE1C4046C617465C4207B22637573746F6D6572223A226C617465222C227175616E74697479223A347DCF000001A2132C2518C4148300C4074F72646572656401C40473686F700200');
INSERT INTO "batch" VALUES(3,'orders.stock.dlq',1,0,1,0,653,1795617989921,X'9195C410B934884B4C7C817CA5366568BBD940F0C40364616EC501FC7B226964223A2237303331326565352D316530632D383763302D623135372D393730353630373665396539222C22746F706963223A226F7264657273222C22706172746974696F6E223A312C226F6666736574223A302C2267726F7570223A2273746F636B222C2268616E646C6572223A225F5F6D61696E5F5F2E6170705F6F662E3C6C6F63616C733E2E73746F636B222C226B6579223A2264616E222C226576656E745F6964223A2230316132313332632D323531382D376637612D623137642D393235313361323761666462222C226576656E745F74797065223A224F726465726564222C227374616765223A2268616E646C65222C22646973706F736974696F6E223A227065726D616E656E74222C226572726F725F636C617373223A2242726F6B656E222C226572726F725F6D657373616765223A2264616E222C2263617573655F636C617373223A6E756C6C2C2266696E6765727072696E74223A2264323232323565363764373536373039222C22617474656D707473223A312C2263726173686573223A302C2266697273745F6661696C65645F6D73223A313739353631373938393931352C226C6173745F6661696C65645F6D73223A313739353631373938393931352C227265706C61795F636F756E74223A302C226F6E5F64656164223A227061726B222C227061796C6F6164223A6E756C6C7DCF000001A2132C251BC46A8400C4166576656E746C616E652E446561644C65747465726564020003C42430316132313332632D323531382D376637612D623137642D39323531336132376166646204C42430316132313332632D323531382D376637612D623137642D393235313361323761666462');
INSERT INTO "batch" VALUES(4,'orders.stock.dlq',0,0,2,0,1305,1795617989924,X'9295C4105BDDA8ABB21F86658C49CBA6BC84FA55C403626F62C501FC7B226964223A2231653530646536332D303364352D386432652D393233322D623831643465626561343863222C22746F706963223A226F7264657273222C22706172746974696F6E223A302C226F6666736574223A312C2267726F7570223A2273746F636B222C2268616E646C6572223A225F5F6D61696E5F5F2E6170705F6F662E3C6C6F63616C733E2E73746F636B222C226B6579223A22626F62222C226576656E745F6964223A2230316132313332632D323531382D376637612D623137642D393235313361323761666439222C226576656E745F74797065223A224F726465726564222C227374616765223A2268616E646C65222C22646973706F736974696F6E223A227065726D616E656E74222C226572726F725F636C617373223A2242726F6B656E222C226572726F725F6D657373616765223A22626F62222C2263617573655F636C617373223A6E756C6C2C2266696E6765727072696E74223A2264323232323565363764373536373039222C22617474656D707473223A312C2263726173686573223A302C2266697273745F6661696C65645F6D73223A313739353631373938393931382C226C6173745F6661696C65645F6D73223A313739353631373938393931382C227265706C61795F636F756E74223A302C226F6E5F64656164223A227061726B222C227061796C6F6164223A6E756C6C7DCF000001A2132C251EC46A8400C4166576656E746C616E652E446561644C65747465726564020003C42430316132313332632D323531382D376637612D623137642D39323531336132376166643904C42430316132313332632D323531382D376637612D623137642D39323531336132376166643995C410CAAF7A761D7D862BBC9DCC450E25F38AC403636964C501FC7B226964223A2265313836666365622D346264342D383331312D393033302D356135653336653365336335222C22746F706963223A226F7264657273222C22706172746974696F6E223A302C226F6666736574223A352C2267726F7570223A2273746F636B222C2268616E646C6572223A225F5F6D61696E5F5F2E6170705F6F662E3C6C6F63616C733E2E73746F636B222C226B6579223A22636964222C226576656E745F6964223A2230316132313332632D323531382D376637612D623137642D393235313361323761666466222C226576656E745F74797065223A224F726465726564222C227374616765223A2268616E646C65222C22646973706F736974696F6E223A227065726D616E656E74222C226572726F725F636C617373223A2242726F6B656E222C226572726F725F6D657373616765223A22636964222C2263617573655F636C617373223A6E756C6C2C2266696E6765727072696E74223A2264323232323565363764373536373039222C22617474656D707473223A312C2263726173686573223A302C2266697273745F6661696C65645F6D73223A313739353631373938393931392C226C6173745F6661696C65645F6D73223A313739353631373938393931392C227265706C61795F636F756E74223A302C226F6E5F64656164223A227061726B222C227061796C6F6164223A6E756C6C7DCF000001A2132C251FC46A8400C4166576656E746C616E652E446561644C65747465726564020003C42430316132313332632D323531382D376637612D623137642D39323531336132376166646604C42430316132313332632D323531382D376637612D623137642D393235313361323761666466');
CREATE TABLE command (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    kind TEXT NOT NULL,
    letter BLOB NOT NULL,
    operation INTEGER
);
CREATE TABLE consumer_group (
    name TEXT PRIMARY KEY,
    start TEXT NOT NULL,
    ordering TEXT NOT NULL,
    on_dead TEXT NOT NULL,
    app TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    paused TEXT,
    replays_max INTEGER
) WITHOUT ROWID;
INSERT INTO "consumer_group" VALUES('mails','first','key','park','shop',1795617989911,1795617989936,'the server is out',10);
INSERT INTO "consumer_group" VALUES('stock','first','key','park','shop',1795617989909,1795617989936,NULL,10);
CREATE TABLE envelope (
    number INTEGER PRIMARY KEY,
    letter TEXT NOT NULL
);
INSERT INTO "envelope" VALUES(1,'{"id":"70312ee5-1e0c-87c0-b157-97056076e9e9","topic":"orders","partition":1,"offset":0,"group":"stock","handler":"__main__.app_of.<locals>.stock","lane":"ZGFu","key":"ZGFu","value":"eyJjdXN0b21lciI6ImRhbiIsInF1YW50aXR5IjowfQ==","header_block":"gwDEB09yZGVyZWQBxARzaG9wAgA=","event_id":"01a2132c-2518-7f7a-b17d-92513a27afdb","event_type":"Ordered","stage":"handle","disposition":"permanent","error_class":"Broken","error_module":"__main__","error_message":"dan","error_stack":"Traceback (most recent call last):\n  File \"/srv/shop/src/eventlane/dispatch.py\", line 451, in _work\n    outcome = await call(event, delivery)\n              ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/shop/tests/data/record.py\", line 47, in stock\n    raise Broken(ordered.customer)\nBroken: dan\n","cause_class":null,"fingerprint":"d22225e67d756709","attempts":1,"timeouts":0,"crashes":0,"first_failed_ms":1795617989915,"last_failed_ms":1795617989915,"produced_ms":1795617989912,"history":[[1,1795617989915,0.0,0.0,0.000018,"Broken","host-1"]],"policy":"Retry(attempts=5, delay_s=1.0, factor=2.0, delay_s_max=60.0, jitter=0.2, immediate=1, elapsed_s_max=None, rules: Broken → Dead())","app":"shop","app_version":"1","host":"host-1","pid":20346,"correlation_id":"01a2132c-2518-7f7a-b17d-92513a27afdb","causation_id":null,"trace_id":null,"on_dead":"park","state":"open","version":1,"replay_count":0,"parked_followers":0,"edited_from":null}');
INSERT INTO "envelope" VALUES(2,'{"id":"1e50de63-03d5-8d2e-9232-b81d4ebea48c","topic":"orders","partition":0,"offset":1,"group":"stock","handler":"__main__.app_of.<locals>.stock","lane":"Ym9i","key":"Ym9i","value":"eyJjdXN0b21lciI6ImJvYiIsInF1YW50aXR5IjowfQ==","header_block":"gwDEB09yZGVyZWQBxARzaG9wAgA=","event_id":"01a2132c-2518-7f7a-b17d-92513a27afd9","event_type":"Ordered","stage":"handle","disposition":"permanent","error_class":"Broken","error_module":"__main__","error_message":"bob","error_stack":"Traceback (most recent call last):\n  File \"/srv/shop/src/eventlane/dispatch.py\", line 451, in _work\n    outcome = await call(event, delivery)\n              ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/shop/tests/data/record.py\", line 47, in stock\n    raise Broken(ordered.customer)\nBroken: bob\n","cause_class":null,"fingerprint":"d22225e67d756709","attempts":1,"timeouts":0,"crashes":0,"first_failed_ms":1795617989918,"last_failed_ms":1795617989918,"produced_ms":1795617989912,"history":[[1,1795617989918,0.0,0.0,6e-6,"Broken","host-1"]],"policy":"Retry(attempts=5, delay_s=1.0, factor=2.0, delay_s_max=60.0, jitter=0.2, immediate=1, elapsed_s_max=None, rules: Broken → Dead())","app":"shop","app_version":"1","host":"host-1","pid":20346,"correlation_id":"01a2132c-2518-7f7a-b17d-92513a27afd9","causation_id":null,"trace_id":null,"on_dead":"park","state":"open","version":1,"replay_count":0,"parked_followers":0,"edited_from":null}');
INSERT INTO "envelope" VALUES(3,'{"id":"e186fceb-4bd4-8311-9030-5a5e36e3e3c5","topic":"orders","partition":0,"offset":5,"group":"stock","handler":"__main__.app_of.<locals>.stock","lane":"Y2lk","key":"Y2lk","value":"eyJjdXN0b21lciI6ImNpZCIsInF1YW50aXR5IjowfQ==","header_block":"gwDEB09yZGVyZWQBxARzaG9wAgA=","event_id":"01a2132c-2518-7f7a-b17d-92513a27afdf","event_type":"Ordered","stage":"handle","disposition":"permanent","error_class":"Broken","error_module":"__main__","error_message":"cid","error_stack":"Traceback (most recent call last):\n  File \"/srv/shop/src/eventlane/dispatch.py\", line 451, in _work\n    outcome = await call(event, delivery)\n              ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/shop/tests/data/record.py\", line 47, in stock\n    raise Broken(ordered.customer)\nBroken: cid\n","cause_class":null,"fingerprint":"d22225e67d756709","attempts":1,"timeouts":0,"crashes":0,"first_failed_ms":1795617989919,"last_failed_ms":1795617989919,"produced_ms":1795617989912,"history":[[1,1795617989919,0.0,0.0,5e-6,"Broken","host-1"]],"policy":"Retry(attempts=5, delay_s=1.0, factor=2.0, delay_s_max=60.0, jitter=0.2, immediate=1, elapsed_s_max=None, rules: Broken → Dead())","app":"shop","app_version":"1","host":"host-1","pid":20346,"correlation_id":"01a2132c-2518-7f7a-b17d-92513a27afdf","causation_id":null,"trace_id":null,"on_dead":"park","state":"open","version":1,"replay_count":0,"parked_followers":0,"edited_from":null}');
CREATE TABLE lane (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    lane NOT NULL,
    parked INTEGER NOT NULL,
    head INTEGER NOT NULL,
    due_ms INTEGER,
    blockers BLOB NOT NULL,
    stops INTEGER NOT NULL,
    gaps BLOB NOT NULL,
    operation INTEGER,
    PRIMARY KEY (consumer_group, topic, partition, lane)
) WITHOUT ROWID;
INSERT INTO "lane" VALUES('mails','orders',1,X'6C617465',2,1,1795621903555,X'90',0,X'90',NULL);
INSERT INTO "lane" VALUES('stock','orders',0,X'626F62',0,0,-1,X'90',0,X'9101',NULL);
INSERT INTO "lane" VALUES('stock','orders',0,X'636964',0,0,NULL,X'9105',0,X'90',NULL);
CREATE TABLE letter (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    lane NOT NULL,
    handler TEXT NOT NULL,
    key BLOB,
    event_type TEXT,
    error_class TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    app_version TEXT,
    kind INTEGER,
    on_dead TEXT NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    replay_count INTEGER NOT NULL,
    counted INTEGER NOT NULL DEFAULT 1,
    dead_ms INTEGER NOT NULL,
    edited_from BLOB
);
INSERT INTO "letter" VALUES(1,X'70312EE51E0C87C0B15797056076E9E9','stock','orders',1,0,X'64616E','__main__.app_of.<locals>.stock',X'64616E','Ordered','Broken','d22225e67d756709','1',1,'park','resolved',3,0,1,1795617989920,NULL);
INSERT INTO "letter" VALUES(2,X'1E50DE6303D58D2E9232B81D4EBEA48C','stock','orders',0,1,X'626F62','__main__.app_of.<locals>.stock',X'626F62','Ordered','Broken','d22225e67d756709','1',1,'park','archived',2,0,1,1795617989924,NULL);
INSERT INTO "letter" VALUES(3,X'E186FCEB4BD4831190305A5E36E3E3C5','stock','orders',0,5,X'636964','__main__.app_of.<locals>.stock',X'636964','Ordered','Broken','d22225e67d756709','1',1,'park','replaying',2,0,1,1795617989924,NULL);
CREATE TABLE letter_kind (
    id INTEGER PRIMARY KEY,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    handler TEXT NOT NULL,
    event_type TEXT NOT NULL,
    error_class TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    app_version TEXT NOT NULL
);
INSERT INTO "letter_kind" VALUES(1,'stock','orders','__main__.app_of.<locals>.stock','Ordered','Broken','d22225e67d756709','1');
CREATE TABLE member_type (
    consumer_group TEXT NOT NULL,
    member TEXT NOT NULL,
    topic TEXT NOT NULL,
    event_type TEXT NOT NULL,
    PRIMARY KEY (consumer_group, member, topic, event_type)
) WITHOUT ROWID;
CREATE TABLE operation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    why TEXT,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    query TEXT,
    allow_gap INTEGER NOT NULL,
    replays_max INTEGER NOT NULL,
    rate_per_s REAL,
    canary INTEGER NOT NULL,
    pause_above REAL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER
);
INSERT INTO "operation" VALUES(1,'replay','done',NULL,'ada','mended',NULL,0,10,50.0,1,0.05,1795617989926,1795617989931);
INSERT INTO "operation" VALUES(2,'archive','done',NULL,'bob','nobody needs it',NULL,0,10,NULL,0,NULL,1795617989932,1795617989932);
INSERT INTO "operation" VALUES(3,'replay','running',NULL,'ada','later','group:stock',0,10,50.0,1,0.05,1795617989946,NULL);
CREATE TABLE operation_letter (
    part INTEGER NOT NULL,
    letter INTEGER NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    lane NOT NULL,
    state TEXT NOT NULL,
    why TEXT,
    PRIMARY KEY (part, letter)
) WITHOUT ROWID;
INSERT INTO "operation_letter" VALUES(1,1,'orders',1,0,X'64616E','resolved',NULL);
INSERT INTO "operation_letter" VALUES(2,2,'orders',0,1,X'626F62','changed',NULL);
INSERT INTO "operation_letter" VALUES(3,3,'orders',0,5,X'636964','pending',NULL);
CREATE TABLE operation_part (
    id INTEGER PRIMARY KEY,
    operation INTEGER NOT NULL,
    consumer_group TEXT NOT NULL,
    total INTEGER NOT NULL,
    pending INTEGER NOT NULL DEFAULT 0,
    released INTEGER NOT NULL DEFAULT 0,
    resolved INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    returned INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL DEFAULT 0,
    followers_done INTEGER NOT NULL DEFAULT 0,
    followers_dead INTEGER NOT NULL DEFAULT 0,
    pacing BLOB NOT NULL,
    is_over INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "operation_part" VALUES(1,1,'stock',1,0,0,1,0,0,0,0,1,0,X'9601FFCB427A2132C254E0000002CB4044000000000000',1);
INSERT INTO "operation_part" VALUES(2,2,'stock',1,0,0,0,0,0,0,1,0,0,X'960000CB00000000000000000000CB0000000000000000',1);
INSERT INTO "operation_part" VALUES(3,3,'stock',1,1,0,0,0,0,0,0,0,0,X'960000CB00000000000000000000CB0000000000000000',0);
CREATE TABLE operation_selection (
    part INTEGER NOT NULL,
    step INTEGER NOT NULL,
    letters TEXT NOT NULL,
    versions TEXT,
    PRIMARY KEY (part, step)
) WITHOUT ROWID;
CREATE TABLE parked (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    lane NOT NULL,
    first_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL,
    records BLOB NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition, lane, first_offset)
) WITHOUT ROWID;
INSERT INTO "parked" VALUES('mails','orders',1,X'6C617465',1,3,X'92920195C41001A2132C25187F7AB17D92513A27AFDCC4046C617465C4207B22637573746F6D6572223A226C617465222C227175616E74697479223A317DCF000001A2132C2518C4148300C4074F72646572656401C40473686F700200920395C41001A2132C25187F7AB17D92513A27AFE1C4046C617465C4207B22637573746F6D6572223A226C617465222C227175616E74697479223A347DCF000001A2132C2518C4148300C4074F72646572656401C40473686F700200');
CREATE TABLE partition (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    first_offset INTEGER NOT NULL DEFAULT 0,
    first_bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
INSERT INTO "partition" VALUES('orders',0,0,0);
INSERT INTO "partition" VALUES('orders',1,0,0);
INSERT INTO "partition" VALUES('orders.stock.dlq',0,0,0);
INSERT INTO "partition" VALUES('orders.stock.dlq',1,0,0);
CREATE TABLE progress (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    owner TEXT,
    epoch INTEGER NOT NULL DEFAULT 0,
    needs TEXT NOT NULL DEFAULT '[]',
    start_offset INTEGER NOT NULL,
    watermark INTEGER NOT NULL,
    settled BLOB NOT NULL,
    dispatched INTEGER NOT NULL DEFAULT -1,
    suspects BLOB NOT NULL DEFAULT x'90',
    alone INTEGER,
    done INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    archived INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    edited INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer_group, topic, partition)
) WITHOUT ROWID;
INSERT INTO "progress" VALUES('mails','orders',0,NULL,1,'[]',0,8,X'90',107,X'90',NULL,8,0,0,0,0,0,0);
INSERT INTO "progress" VALUES('mails','orders',1,NULL,1,'[]',0,4,X'90',103,X'90',NULL,2,2,0,0,0,0,0);
INSERT INTO "progress" VALUES('stock','orders',0,NULL,1,'[]',0,8,X'90',107,X'90',NULL,6,0,1,1,0,0,0);
INSERT INTO "progress" VALUES('stock','orders',1,NULL,1,'[]',0,4,X'90',103,X'90',NULL,3,0,0,0,1,0,0);
CREATE TABLE rate (
    name TEXT PRIMARY KEY,
    rate_per_s REAL NOT NULL,
    asked_ms INTEGER NOT NULL,
    free_ms REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE topic (
    name TEXT PRIMARY KEY,
    partitions INTEGER NOT NULL,
    retention_s REAL,
    retention_bytes INTEGER,
    size_bytes_max INTEGER
) WITHOUT ROWID;
INSERT INTO "topic" VALUES('orders',2,7776000.0,NULL,NULL);
INSERT INTO "topic" VALUES('orders.stock.dlq',2,NULL,NULL,NULL);
CREATE INDEX topic_with_cap ON topic (name) WHERE size_bytes_max IS NOT NULL;
CREATE UNIQUE INDEX batch_by_offset ON batch (topic, partition, base_offset);
CREATE INDEX attempts_by_lane ON attempts (consumer_group, topic, partition, lane);
CREATE INDEX lane_by_due ON lane (consumer_group, topic, partition, due_ms);
CREATE INDEX lane_that_stops ON lane (consumer_group, topic, partition) WHERE stops;
CREATE INDEX lane_by_operation ON lane (operation) WHERE operation IS NOT NULL;
CREATE UNIQUE INDEX letter_by_offset ON letter (consumer_group, topic, partition, offset, handler)
    WHERE state != 'edited';
CREATE INDEX letter_by_lane ON letter (topic, partition, lane);
CREATE INDEX letter_by_kind ON letter (kind, state, dead_ms);
CREATE INDEX letter_by_key ON letter (key, dead_ms);
CREATE UNIQUE INDEX letter_kind_by_all ON letter_kind (
    fingerprint, consumer_group, topic, handler, event_type, error_class, app_version
);
CREATE TRIGGER letter_is_new AFTER INSERT ON letter BEGIN
    
    INSERT INTO letter_kind (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version)
    SELECT 
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
 WHERE NOT EXISTS (
    SELECT id FROM letter_kind WHERE (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version) = (
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
)
);
    UPDATE letter SET kind = (
    SELECT id FROM letter_kind WHERE (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version) = (
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
)
) WHERE number = new.number;

END;
CREATE TRIGGER letter_is_another AFTER UPDATE OF consumer_group, topic, handler, event_type,
    error_class, fingerprint, app_version ON letter BEGIN
    
    INSERT INTO letter_kind (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version)
    SELECT 
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
 WHERE NOT EXISTS (
    SELECT id FROM letter_kind WHERE (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version) = (
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
)
);
    UPDATE letter SET kind = (
    SELECT id FROM letter_kind WHERE (fingerprint, consumer_group, topic, handler, event_type,
        error_class, app_version) = (
    new.fingerprint, new.consumer_group, new.topic, new.handler, coalesce(new.event_type, ''),
        new.error_class, coalesce(new.app_version, '')
)
) WHERE number = new.number;

END;
CREATE INDEX command_by_partition ON command (consumer_group, topic, partition, id);
CREATE INDEX operation_by_state ON operation (state, id);
CREATE INDEX operation_not_ended ON operation (id) WHERE ended_ms IS NULL;
CREATE UNIQUE INDEX operation_part_by_group ON operation_part (operation, consumer_group);
CREATE INDEX operation_letter_pending ON operation_letter (part, topic, partition, offset)
    WHERE state = 'pending';
CREATE INDEX operation_letter_failed ON operation_letter (part, topic, partition, lane, offset)
    WHERE state = 'failed';
CREATE UNIQUE INDEX operation_letter_at_once ON operation_letter (letter)
    WHERE state IN ('pending', 'released');
CREATE INDEX audit_by_letter ON audit (letter, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('batch',4);
INSERT INTO "sqlite_sequence" VALUES('letter',3);
INSERT INTO "sqlite_sequence" VALUES('operation',3);
INSERT INTO "sqlite_sequence" VALUES('audit',5);
INSERT INTO "sqlite_sequence" VALUES('command',2);
COMMIT;
